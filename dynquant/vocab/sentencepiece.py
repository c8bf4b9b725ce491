"""Read the pieces and settings of a SentencePiece `tokenizer.model`, with all bounds checked.

The file is a protobuf message (sentencepiece_model.proto), a sequence of fields. A field is a
varint `number << 3 | wire type` and a value: wire type 0 is a varint, 1 is 8 bytes, 2 is a varint
length and that many bytes, 5 is 4 bytes. Fields that are not listed here are skipped.

  ModelProto      1 pieces (SentencePiece, repeated)   2 trainer_spec   3 normalizer_spec
  SentencePiece   1 piece (UTF-8)   2 score (float)   3 type (default NORMAL)
  TrainerSpec     3 model_type (default unigram)   40 unk_id (0)   41 bos_id (1)   42 eos_id (2)
                  43 pad_id (-1)
  NormalizerSpec  2 precompiled_charsmap   3 add_dummy_prefix (default true)
                  4 remove_extra_whitespaces (default true)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gguf import TokenType

from dynquant.errors import VocabError
from dynquant.untrusted import shown
from dynquant.vocab.files import read_bytes
from dynquant.vocab.tokens import MAX_TOKENS, Token

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_TRAINER_IDS = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}


@dataclass
class SentencePieceModel:
    """A SentencePiece model: its pieces by id, and the settings that affect how text is split."""

    pieces: list[Token] = field(default_factory=list[Token])
    model_type: str = "unigram"
    special_ids: dict[str, int] = field(
        default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    )
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    charsmap: bytes = b""


class _MalformedError(Exception):
    """A malformed message: the fault, and the byte where it is."""


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model`; raise VocabError if it is not a complete SentencePiece model."""
    try:
        model = _read_model(memoryview(read_bytes(path)))
    except _MalformedError as e:
        raise VocabError(
            f"{path}: not a complete SentencePiece model: {e}; download the file again"
        ) from e
    return model


def _read_model(data: memoryview) -> SentencePieceModel:
    model = SentencePieceModel()
    parts: set[int] = set()
    for number, value in _fields(data):
        parts.add(number)
        if number == 1:
            if len(model.pieces) == MAX_TOKENS:
                raise _MalformedError(f"more than {MAX_TOKENS} pieces")
            model.pieces.append(_read_piece(_message(value, "piece"), len(model.pieces)))
        elif number == 2:
            for key, setting in _fields(_message(value, "trainer_spec")):
                if key == 3:
                    kind = _integer(setting, "model_type")
                    model.model_type = _MODEL_TYPES.get(kind, f"type {kind}")
                elif key in _TRAINER_IDS:
                    model.special_ids[_TRAINER_IDS[key]] = _integer(setting, "a special id")
        elif number == 3:
            for key, setting in _fields(_message(value, "normalizer_spec")):
                if key == 2:
                    model.charsmap = bytes(_message(setting, "precompiled_charsmap"))
                elif key == 3:
                    model.add_dummy_prefix = bool(_integer(setting, "add_dummy_prefix"))
                elif key == 4:
                    model.remove_extra_whitespaces = bool(_integer(setting, "a whitespace rule"))
    # The trainer writes all three, pieces first; a file cut between fields misses at least one.
    for number, part in ((1, "pieces"), (2, "trainer_spec"), (3, "normalizer_spec")):
        if number not in parts:
            raise _MalformedError(f"it has no {part}")
    return model


def _read_piece(data: memoryview, token_id: int) -> Token:
    text, score, kind = "", 0.0, int(TokenType.NORMAL)
    for number, value in _fields(data):
        if number == 1:
            try:
                text = bytes(_message(value, "a piece's text")).decode("utf-8")
            except UnicodeDecodeError as e:
                raise _MalformedError(f"piece {token_id} is not UTF-8") from e
        elif number == 2:
            raw = bytes(_message(value, "a piece's score"))
            if len(raw) != 4:
                raise _MalformedError(f"piece {token_id} has a score of {len(raw)} bytes")
            (score,) = struct.unpack("<f", raw)
            if score != score:
                raise _MalformedError(f"piece {token_id} has a score that is not a number")
        elif number == 3:
            kind = _integer(value, "a piece's type")
    try:
        return Token(text, TokenType(kind), score)
    except ValueError as e:
        raise _MalformedError(f"piece {token_id}, {shown(text)}, is of unknown type {kind}") from e


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field; values other than varints are memoryviews."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _MalformedError(f"wire type {wire} at byte {at - 1}")
        if length > len(data) - at:
            raise _MalformedError(f"ends {length - (len(data) - at)} bytes too early")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the varint of at most 64 bits at a byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _MalformedError("ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise _MalformedError(f"a number of more than 10 bytes before byte {at}")


def _message(value: int | memoryview, what: str) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError(f"{what} is a number")
    return value


def _integer(value: int | memoryview, what: str) -> int:
    """Return an int32, which protobuf sign-extends to 64 bits."""
    if not isinstance(value, int):
        raise _MalformedError(f"{what} is not a number")
    return value - 2**64 if value >= 2**63 else value
