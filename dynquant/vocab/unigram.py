"""Unigram vocabularies, as in T5 and XLM-RoBERTa: text is split into the most likely pieces.

All unigram models become llama.cpp's tokenizer "t5", also those of decoders: "llama" merges by
score, which splits almost every text differently.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType
from gguf.constants import Keys as Gguf

from dynquant.errors import Problems, VocabError
from dynquant.keys import Keys, boolean, f32s, i32s, string, strings, u8s, u32
from dynquant.vocab.files import TokenizerFiles, as_id, as_list, some
from dynquant.vocab.rules import (
    BARE,
    BLANKS,
    NO_SECOND_SPACE,
    SPANNING,
    SPLIT,
    UNIGRAM,
    UNMERGED,
    check_rules,
    steps_of,
)
from dynquant.vocab.sentencepiece import SentencePieceModel
from dynquant.vocab.special import read_special
from dynquant.vocab.spm import BYTE, added_piece, prepared
from dynquant.vocab.templates import chat_template_keys
from dynquant.vocab.tokens import SPACE, Token, lay_out

# fairseq has four special tokens first; they replace the first three of SentencePiece.
_FAIRSEQ_CLASSES = ("XLMRobertaTokenizer",)
_FAIRSEQ_TYPES = ("xlm-roberta",)
_FAIRSEQ = {"<s>": "bos", "<pad>": "pad", "</s>": "eos", "<unk>": "unk"}
_MASK = "<mask>"

_MAX_SCORE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class _Rules:
    """How a text is normalized before it is split.

    charsmap:      SentencePiece's table of replacements; empty without one
    space_prefix:  add a space before the text
    merge_spaces:  replace several spaces by one, and remove those at the ends
    """

    charsmap: bytes
    space_prefix: bool
    merge_spaces: bool


def read_unigram(files: TokenizerFiles, path: Path, model: SentencePieceModel) -> Keys:
    """Return the keys of a SentencePiece unigram model.

    path: the file that the model was read from

    Raises VocabError if the table of replacements is damaged.
    """
    rules = _Rules(model.charsmap, model.add_dummy_prefix, model.remove_extra_whitespaces)
    stated = str(files.tokenizer_config.get("tokenizer_class")).removesuffix("Fast")
    fairseq = stated in _FAIRSEQ_CLASSES or files.config.get("model_type") in _FAIRSEQ_TYPES
    if any(piece.type is TokenType.BYTE for piece in model.pieces):
        _warn_of_bytes(files, path)
    if files.tokenizer and files.model.get("type") == "BPE":
        files.warn(
            f"{path}: is a unigram model, but tokenizer.json is of kind 'BPE'; {path.name} is used;"
            " remove the file that does not belong to the model"
        )
    pieces, ids = dict(enumerate(model.pieces)), model.special_ids
    if fairseq:
        pieces, ids = _realigned(model)
    special = {"bos": fairseq, "eos": True}
    return _keys(files, path, pieces, rules, ids, special)


def read_unigram_json(files: TokenizerFiles) -> Keys:
    """Return the keys of a tokenizer.json of kind Unigram.

    Raises VocabError if the file is damaged, or if it has rules that llama.cpp does not have.
    """
    path = files.folder / "tokenizer.json"
    where = f"{path}: 'vocab'"
    entries: list[tuple[str, float]] = []
    wrong: list[Any] = []
    for item in as_list(files.model.get("vocab"), where):
        match item:
            case [str(text), float() | int() as score] if abs(score) <= _MAX_SCORE:  # no NaN
                entries.append((text, float(score)))
            case _:
                wrong.append(item)
    if wrong or not entries:
        fault = f"not pairs of text and score: {some(wrong)}" if wrong else "it is empty"
        raise VocabError(f"{where}: {fault}; download the file again")
    unk: Any = files.model.get("unk_id")
    unknown = None if unk is None else as_id(unk, f"{path}: 'unk_id'")
    pieces = {i: Token(text, _type(text, i == unknown), s) for i, (text, s) in enumerate(entries)}
    ids = {} if unknown is None else {"unk": unknown}
    texts = [text for text, _ in entries]
    rules = _read_rules(path, files, texts)
    if files.model.get("byte_fallback") is True:
        _warn_of_bytes(files, path)
    return _keys(files, path, pieces, rules, ids, {})


def _warn_of_bytes(files: TokenizerFiles, path: Path) -> None:
    files.warn(
        f"{path}: the tokenizer splits characters without a piece into bytes; llama.cpp's unigram"
        " has the unknown token for those beyond ASCII"
    )


def _keys(
    files: TokenizerFiles,
    path: Path,
    pieces: Mapping[int, Token],
    rules: _Rules,
    model_ids: Mapping[str, int],
    add: Mapping[str, bool],
) -> Keys:
    _check_charsmap(path, rules.charsmap)
    laid = _bytes_spelled({i: prepared(token) for i, token in pieces.items()})
    for i, token in files.added_tokens.items():
        known = laid.get(i)
        # An added token keeps the piece's score, and the unknown token its type.
        if known is None or known.type is not TokenType.UNKNOWN:
            made = added_piece(token)
            laid[i] = Token(made.text, made.type, known.score if known else made.score)
    tokens = lay_out(files.folder, laid, files.vocab_size)
    special = read_special(files, tokens, model_ids)
    special.add = {k: v and k in special.ids for k, v in add.items()} | special.add
    special.add.setdefault("eos", False)  # llama.cpp adds one by default
    if "unk" not in special.ids:
        raise VocabError(
            f"{path}: the unknown token is missing, which llama.cpp's unigram needs; name it in"
            " tokenizer_config.json"
        )
    keys: Keys = {
        Gguf.Tokenizer.MODEL: string("t5"),
        Gguf.Tokenizer.PRE: string("default"),
        Gguf.Tokenizer.LIST: strings([token.text for token in tokens]),
        Gguf.Tokenizer.SCORES: f32s([token.score for token in tokens]),
        Gguf.Tokenizer.TOKEN_TYPE: i32s([int(token.type) for token in tokens]),
        Gguf.Tokenizer.ADD_PREFIX: boolean(rules.space_prefix),
        Gguf.Tokenizer.TOKEN_TYPE_COUNT: u32(files.token_type_count),
        Gguf.Tokenizer.REMOVE_EXTRA_WS: boolean(rules.merge_spaces),
    }
    if rules.charsmap:
        keys[Gguf.Tokenizer.PRECOMPILED_CHARSMAP] = u8s(rules.charsmap)
    return {**keys, **special.keys(), **chat_template_keys(files)}


def _bytes_spelled(pieces: Mapping[int, Token]) -> dict[int, Token]:
    """Return the pieces, with byte pieces of ASCII characters spelled as these characters.

    SentencePiece falls back to bytes, but llama.cpp's unigram to the unknown token. With this
    spelling, line ends and other ASCII characters without a piece are preserved; further characters
    are not. Characters that have a piece are left as they are.
    """
    texts = {piece.text for piece in pieces.values()}
    unlikely = min((p.score for p in pieces.values() if p.type is TokenType.NORMAL), default=0.0)
    spelled = dict(pieces)
    for i, piece in pieces.items():
        if piece.type is TokenType.BYTE:
            byte = int(piece.text[3:5], 16)
            if byte < 0x80 and chr(byte) not in ("\0", " ", *texts):
                # 10 below the least likely piece, as SentencePiece scores the unknown token.
                spelled[i] = Token(chr(byte), TokenType.NORMAL, unlikely - 10.0)
    return spelled


def _type(text: str, is_unknown: bool) -> TokenType:
    if is_unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL


def _realigned(model: SentencePieceModel) -> tuple[dict[int, Token], dict[str, int]]:
    """Return the pieces at fairseq's ids, one above SentencePiece's, and the special ids."""
    pieces = {
        i: Token(text, TokenType.UNKNOWN if name == "unk" else TokenType.CONTROL)
        for i, (text, name) in enumerate(_FAIRSEQ.items())
    }
    pieces |= {i + 1: piece for i, piece in enumerate(model.pieces) if i >= 3}
    mask = len(model.pieces) + 1
    pieces[mask] = Token(_MASK, TokenType.CONTROL)
    return pieces, {name: i for i, name in enumerate(_FAIRSEQ.values())} | {"mask": mask}


def _read_rules(path: Path, files: TokenizerFiles, texts: Iterable[str]) -> _Rules:
    """Read a tokenizer.json's normalizer and pre-tokenizer.

    texts: the pieces

    Raises VocabError with each rule that llama.cpp does not have.
    """
    charsmap, prefix, scheme = b"", False, None
    merged, split, trimmed = False, False, False
    for step in steps_of(files, "normalizer"):
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": str(text)}:
                charsmap = _decode(path, text)
                _check_charsmap(path, charsmap)
            case {"type": "Strip", **rest}:
                trimmed |= rest.get("strip_right") is not False
            case {"type": "Replace"}:
                merged = True
            case _:
                pass
    for step in steps_of(files, "pre_tokenizer"):
        match step:
            case {"type": "WhitespaceSplit"}:
                split = True
            case {"type": "Metaspace"}:
                scheme = step.get("prepend_scheme", "always")
                prefix = scheme != "never" and step.get("add_prefix_space") is not False
            case _:
                pass
    facts = {
        BLANKS: any(_replaced(charsmap, blank) != b" " for blank in b"\t\n"),
        SPLIT: split,
        UNMERGED: not (merged or split),
        # llama.cpp begins a text with a space where it merges spaces.
        BARE: (split and scheme != "always") or (merged and not prefix),
        SPANNING: any(SPACE in text.lstrip(SPACE if merged or split else "")[1:] for text in texts),
    }
    problems = Problems()
    problems.attempt(
        lambda: check_rules(
            path, files, UNIGRAM, frozenset(f for f, holds in facts.items() if holds)
        )
    )
    if scheme is None:
        problems.add(
            f"{path}: the pre-tokenizer has no Metaspace, but llama.cpp's unigram replaces spaces"
            f" by {SPACE}; this tokenizer cannot be converted"
        )
    problems.raise_any(VocabError)
    if merged and not split and not trimmed:
        files.warn(
            f"{path}: llama.cpp's unigram removes the space after a text, the tokenizer does not"
        )
    if prefix and not (merged or split):
        files.warn(f"{path}: {NO_SECOND_SPACE}")
    return _Rules(charsmap, prefix, merged or split)


def _replaced(charsmap: bytes, byte: int) -> bytes:
    """Return the replacement of an ASCII character that no longer sequence begins with.

    The trie's nodes are u32: the label in bits 0-7, a leaf in bit 8, and the offset to the
    children in bits 10-30, shifted by 8 if bit 9 is set. A leaf's child has the place of the text.
    """
    size = struct.unpack("<I", charsmap[:4])[0] if len(charsmap) > 4 else 0
    trie = charsmap[4 : 4 + size]

    def node(i: int) -> int:
        return struct.unpack_from("<I", trie, 4 * i)[0] if 4 * i + 4 <= len(trie) else 0

    def offset(i: int) -> int:
        return (node(i) >> 10) << ((node(i) & 1 << 9) >> 6)

    at = offset(0) ^ byte
    if not byte or node(at) & 0x800000FF != byte or not node(at) & 1 << 8:
        return bytes([byte])
    text = charsmap[4 + size + (node(at ^ offset(at)) & 0x7FFFFFFF) :]
    return text.split(b"\0", 1)[0]


def _decode(path: Path, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise VocabError(
            f"{path}: precompiled_charsmap is not base64: {e}; download the file again"
        ) from e


def _check_charsmap(path: Path, charsmap: bytes) -> None:
    if problem := _charsmap_problem(charsmap):
        raise VocabError(f"{path}: the table of replacements {problem}; download the file again")


def _charsmap_problem(charsmap: bytes) -> str | None:
    """Return a fault on which llama.cpp aborts; layout: u32 size of a trie, the trie, the texts."""
    if not charsmap:
        return None
    if len(charsmap) < 4:
        return f"has {len(charsmap)} bytes"
    (size,) = struct.unpack("<I", charsmap[:4])
    if size + 4 >= len(charsmap) or size % 4:
        return f"declares a trie of {size} bytes in a total of {len(charsmap)}"
    return None if charsmap.endswith(b"\0") else "ends inside a text"


def is_unigram(model: SentencePieceModel) -> bool:
    """Return whether a SentencePiece model is split by likelihood in llama.cpp."""
    return model.model_type == "unigram"
