"""Unigram vocabularies, T5's and XLM-RoBERTa's: the likeliest way to cut a text into pieces.

Any unigram model is one of llama.cpp's "t5", also where a decoder has it: merging by score, which
is what "llama" does, cuts almost every text otherwise than the model does.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType
from gguf.constants import Keys as Gguf

from dynquant.errors import VocabError
from dynquant.keys import Keys, boolean, f32s, i32s, string, strings, u8s, u32
from dynquant.untrusted import shown
from dynquant.vocab.files import Json, TokenizerFiles, as_id, as_list, some
from dynquant.vocab.pretokenizer import steps
from dynquant.vocab.sentencepiece import SentencePieceModel
from dynquant.vocab.special import read_special
from dynquant.vocab.spm import BYTE, added_piece, prepared
from dynquant.vocab.templates import chat_template_keys
from dynquant.vocab.tokens import Token, lay_out

# fairseq put its own four before the pieces, of which SentencePiece's first three have no place.
_FAIRSEQ_CLASSES = ("XLMRobertaTokenizer",)
_FAIRSEQ_TYPES = ("xlm-roberta",)
_FAIRSEQ = {"<s>": "bos", "<pad>": "pad", "</s>": "eos", "<unk>": "unk"}
_MASK = "<mask>"

_MAX_SCORE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class _Rules:
    """What is done to a text before it is cut.

    charsmap:      SentencePiece's table of replacements, empty for none
    space_prefix:  put a space before the text
    merge_spaces:  take several spaces for one, and none at the ends
    """

    charsmap: bytes
    space_prefix: bool
    merge_spaces: bool


def read_unigram(files: TokenizerFiles, path: Path, model: SentencePieceModel) -> Keys:
    """Return the keys of a SentencePiece unigram model.

    path: where the model was read

    Raises VocabError for a table of replacements that is damaged.
    """
    rules = _Rules(model.charsmap, model.add_dummy_prefix, model.remove_extra_whitespaces)
    stated = str(files.tokenizer_config.get("tokenizer_class")).removesuffix("Fast")
    fairseq = stated in _FAIRSEQ_CLASSES or files.config.get("model_type") in _FAIRSEQ_TYPES
    pieces, ids = dict(enumerate(model.pieces)), model.special_ids
    if fairseq:
        pieces, ids = _realigned(model)
    special = {"bos": fairseq, "eos": True}
    return _keys(files, path, pieces, rules, ids, special)


def read_unigram_json(files: TokenizerFiles) -> Keys:
    """Return the keys of a tokenizer.json of kind Unigram.

    Raises VocabError for a damaged file, and for rules that llama.cpp does not have.
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
        what = f"{some(wrong)} are not texts with their scores" if wrong else "it is empty"
        raise VocabError(f"{where}: {what}; download the file again")
    unk: Any = files.model.get("unk_id")
    unknown = None if unk is None else as_id(unk, f"{path}: 'unk_id'")
    pieces = {i: Token(text, _type(text, i == unknown), s) for i, (text, s) in enumerate(entries)}
    ids = {} if unknown is None else {"unk": unknown}
    return _keys(files, path, pieces, _read_rules(path, files), ids, {})


def _keys(
    files: TokenizerFiles,
    path: Path,
    pieces: Mapping[int, Token],
    rules: _Rules,
    model_ids: Mapping[str, int],
    add: Mapping[str, bool],
) -> Keys:
    if problem := _charsmap_problem(rules.charsmap):
        raise VocabError(f"{path}: the table of replacements {problem}; download the file again")
    laid = _bytes_spelled({i: prepared(token) for i, token in pieces.items()})
    for i, token in files.added_tokens.items():
        known = laid.get(i)
        # What stands for the unknown is special too; its score is the piece's.
        if known is None or known.type is not TokenType.UNKNOWN:
            made = added_piece(token)
            laid[i] = Token(made.text, made.type, known.score if known else made.score)
    tokens = lay_out(files.folder, laid, files.vocab_size)
    special = read_special(files, tokens, model_ids)
    special.add = {k: v and k in special.ids for k, v in add.items()} | special.add
    special.add.setdefault("eos", False)  # llama.cpp adds one unless told
    if "unk" not in special.ids:
        raise VocabError(
            f"{path}: there is no unknown token, which llama.cpp's unigram needs; name it in"
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
    """Spell the bytes that are characters as these, where no piece does.

    SentencePiece falls back to bytes, llama.cpp's unigram to the unknown token: so line ends and
    whatever else of ASCII only bytes can say stay what they are, and further characters do not.
    """
    texts = {piece.text for piece in pieces.values()}
    unlikely = min((p.score for p in pieces.values() if p.type is TokenType.NORMAL), default=0.0)
    spelled = dict(pieces)
    for i, piece in pieces.items():
        if piece.type is TokenType.BYTE:
            byte = int(piece.text[3:5], 16)
            if byte < 0x80 and chr(byte) not in ("\0", " ", *texts):
                # As much less likely than any piece as SentencePiece has the unknown.
                spelled[i] = Token(chr(byte), TokenType.NORMAL, unlikely - 10.0)
    return spelled


def _type(text: str, is_unknown: bool) -> TokenType:
    if is_unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL


def _realigned(model: SentencePieceModel) -> tuple[dict[int, Token], dict[str, int]]:
    """Return the pieces at fairseq's ids, one further than SentencePiece's, and its special ids."""
    pieces = {
        i: Token(text, TokenType.UNKNOWN if name == "unk" else TokenType.CONTROL)
        for i, (text, name) in enumerate(_FAIRSEQ.items())
    }
    pieces |= {i + 1: piece for i, piece in enumerate(model.pieces) if i >= 3}
    mask = len(model.pieces) + 1
    pieces[mask] = Token(_MASK, TokenType.CONTROL)
    return pieces, {name: i for i, name in enumerate(_FAIRSEQ.values())} | {"mask": mask}


def _read_rules(path: Path, files: TokenizerFiles) -> _Rules:
    """Read a tokenizer.json's normalizer and pre-tokenizer."""
    charsmap, prefix, merge = b"", False, False
    unknown: list[Json] = []
    for step in steps(files.tokenizer.get("normalizer"), "normalizers"):
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": str(text)}:
                charsmap = _decode(path, text)
            case {"type": "Precompiled", "precompiled_charsmap": None}:
                pass
            case {"type": "Strip"}:
                pass  # where spaces are merged, none is left at the ends
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "\u2581"}:
                merge = True
            case _:
                unknown.append(step)
    for step in steps(files.tokenizer.get("pre_tokenizer"), "pretokenizers"):
        match step:
            case {"type": "WhitespaceSplit"}:
                merge = True
            case {"type": "Metaspace", "replacement": "\u2581"}:
                scheme = step.get("prepend_scheme", "always")
                prefix = scheme != "never" and step.get("add_prefix_space") is not False
            case _:
                unknown.append(step)
    VocabError.raise_any(
        f"{path}: the rule {shown(step)} is none of llama.cpp's unigram; take tokenizer.json away"
        " if the SentencePiece model of the tokenizer lies beside it"
        for step in unknown
    )
    return _Rules(charsmap, prefix, merge)


def _decode(path: Path, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise VocabError(
            f"{path}: precompiled_charsmap is not base64: {e}; download the file again"
        ) from e


def _charsmap_problem(charsmap: bytes) -> str | None:
    """Say what llama.cpp would abort on: a u32 size of a trie, the trie, and texts after it."""
    if not charsmap:
        return None
    if len(charsmap) < 4:
        return f"has {len(charsmap)} bytes"
    (size,) = struct.unpack("<I", charsmap[:4])
    if size + 4 >= len(charsmap) or size % 4:
        return f"speaks of {size} bytes of its {len(charsmap)}"
    return None if charsmap.endswith(b"\0") else "ends inside a text"


def is_unigram(model: SentencePieceModel) -> bool:
    """Whether a SentencePiece model is one that llama.cpp cuts by likelihood."""
    return model.model_type == "unigram"
