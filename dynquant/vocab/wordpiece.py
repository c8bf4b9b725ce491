"""WordPiece vocabularies, as in BERT: tokenizer.json, or vocab.txt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from gguf.constants import Keys as Gguf

from dynquant.errors import Problems, VocabError
from dynquant.keys import Keys, boolean, i32s, string, strings, u32
from dynquant.untrusted import shown
from dynquant.vocab.files import TokenizerFiles, as_id, read_text
from dynquant.vocab.rules import WORDPIECE, check_rules, steps_of
from dynquant.vocab.special import read_special
from dynquant.vocab.templates import chat_template_keys
from dynquant.vocab.tokens import SPACE, Token, added_type, lay_out

# BertTokenizer's special tokens, for a vocab.txt if no other file names them.
_DEFAULTS = {
    "bos": "[CLS]",
    "eos": "[SEP]",
    "unk": "[UNK]",
    "sep": "[SEP]",
    "pad": "[PAD]",
    "mask": "[MASK]",
}

_INSIDE = "##"  # begins a piece that continues a word

# Keys that the `gguf` wheel has no name for, from src/llama-arch.cpp.
_LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
_STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"


@dataclass(frozen=True)
class _Normalizer:
    """How a text is normalized before it is split."""

    lowercase: bool
    strip_accents: bool


def read_wordpiece(files: TokenizerFiles) -> Keys:
    """Return the keys of a WordPiece tokenizer, in the form that llama.cpp calls phantom space.

    Pieces that begin a word are prefixed with U+2581, pieces inside a word lose their `##`, and
    llama.cpp searches for the longest piece in a word prefixed with U+2581. Raises VocabError if
    files are damaged, or have rules that llama.cpp's WordPiece does not have.
    """
    path, vocab = _read_vocab(files)
    problems = Problems()
    problems.add(*_unsupported(path, files))
    problems.attempt(lambda: check_rules(path, files, WORDPIECE, frozenset()))
    problems.raise_any(VocabError)
    normalizer = _normalizer(path, files)

    laid = {i: Token(_phantom(text), TokenType.NORMAL) for text, i in vocab.items()}
    controls = {vocab[t]: t for t in _DEFAULTS.values() if t in vocab and not files.tokenizer}
    laid |= {i: Token(text, TokenType.CONTROL) for i, text in controls.items()}
    laid |= {i: Token(token.text, added_type(token)) for i, token in files.added_tokens.items()}
    tokens = lay_out(files.folder, laid, files.vocab_size)

    ids = {token.text: i for i, token in enumerate(tokens)}
    known = {name: ids[text] for name, text in _DEFAULTS.items() if text in ids}
    special = read_special(files, tokens, known)
    special.add = {"bos": True, "eos": True, "sep": False} | special.add
    VocabError.raise_any(
        f"{path}: the {name} token ({_DEFAULTS[name]}) is missing, which llama.cpp's WordPiece"
        " needs; name it in tokenizer_config.json"
        for name in ("bos", "sep", "unk")
        if name not in special.ids
    )
    return {
        Gguf.Tokenizer.TOKEN_TYPE_COUNT: u32(files.token_type_count),
        Gguf.Tokenizer.MODEL: string("bert"),
        Gguf.Tokenizer.PRE: string("default"),
        Gguf.Tokenizer.LIST: strings([token.text for token in tokens]),
        Gguf.Tokenizer.TOKEN_TYPE: i32s([int(token.type) for token in tokens]),
        **special.keys(),
        _LOWERCASE: boolean(normalizer.lowercase),
        _STRIP_ACCENTS: boolean(normalizer.strip_accents),
        **chat_template_keys(files),
    }


def _phantom(text: str) -> str:
    return text[len(_INSIDE) :] if text.startswith(_INSIDE) else SPACE + text


def _read_vocab(files: TokenizerFiles) -> tuple[Path, dict[str, int]]:
    """Return the vocabulary's file, and the ids of its tokens by text."""
    if files.tokenizer:
        path = files.folder / "tokenizer.json"
        vocab = files.part(files.model, "vocab")
        ids = {text: as_id(i, f"{path}: {shown(text)}") for text, i in vocab.items()}
    else:
        path = files.folder / "vocab.txt"
        # Not splitlines(): some pieces are line ends in Unicode.
        lines = read_text(path).removesuffix("\n").split("\n")
        ids = {text.removesuffix("\r"): i for i, text in enumerate(lines)}
    if not any(ids):
        raise VocabError(f"{path}: the vocabulary is empty; download the file again")
    return path, ids


def _unsupported(path: Path, files: TokenizerFiles) -> list[str]:
    """Return a message for each rule that llama.cpp's WordPiece does not have."""
    if not files.tokenizer:
        return _unsupported_config(files)
    wrong: list[str] = []
    prefix = files.model.get("continuing_subword_prefix", _INSIDE)
    if prefix != _INSIDE:
        wrong.append(f"{path}: continuing_subword_prefix is {shown(prefix)}, not {_INSIDE!r}")
    return [
        f"{w}; llama.cpp's WordPiece has no such rule, the tokenizer cannot be converted"
        for w in wrong
    ] + [
        f"{path}: the {part} is missing, but llama.cpp's WordPiece always has that of BERT; the"
        " tokenizer cannot be converted"
        for part in ("normalizer", "pre_tokenizer")
        if not steps_of(files, part)
    ]


# Classes of transformers that split a vocab.txt as BERT does.
_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")


def _unsupported_config(files: TokenizerFiles) -> list[str]:
    """Return a message for each setting of tokenizer_config.json that llama.cpp does not have."""
    where, config = files.folder / "tokenizer_config.json", files.tokenizer_config
    wrong: list[str] = []
    stated = config.get("tokenizer_class")
    if isinstance(stated, str) and stated.removesuffix("Fast") not in _CLASSES:
        wrong.append(f"tokenizer_class {shown(stated)} without a tokenizer.json")
    if config.get("do_basic_tokenize") is False:
        wrong.append("do_basic_tokenize is false")
    if config.get("never_split"):
        wrong.append(f"never_split is {shown(config['never_split'])}")
    return [
        f"{where}: {w}; llama.cpp's WordPiece has no such rule, the tokenizer cannot be converted"
        for w in wrong
    ]


def _normalizer(path: Path, files: TokenizerFiles) -> _Normalizer:
    """Read the normalizer; by default accents are stripped if capitals are lowered.

    Raises VocabError if tokenizer_config.json, by which transformers builds the normalizer of a
    BertTokenizer, contradicts tokenizer.json.
    """
    where, rule = files.folder / "tokenizer_config.json", _slow_normalizer(files)
    if files.tokenizer:
        stated, rule = rule, steps_of(files, "normalizer")[-1]
        VocabError.raise_any(
            f"{where}: {_SETTINGS[name]} is {str(stated[name]).lower()}, but in tokenizer.json"
            f" {name} is {str(rule.get(name)).lower()}; make the files agree"
            for name in _SETTINGS
            if isinstance(stated[name], bool)
            and isinstance(rule.get(name), bool)
            and stated[name] != rule[name]
        )
        where = path
    if rule.get("handle_chinese_chars") is False:
        raise VocabError(
            f"{where}: Chinese characters are not split, but llama.cpp's WordPiece always splits"
            " them; this tokenizer cannot be converted"
        )
    lowercase = rule.get("lowercase") is not False
    strip: Any = rule.get("strip_accents")
    return _Normalizer(lowercase, strip if isinstance(strip, bool) else lowercase)


# Settings of a normalizer in tokenizer.json, and their names in tokenizer_config.json.
_SETTINGS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}


def _slow_normalizer(files: TokenizerFiles) -> Mapping[str, Any]:
    """Return the settings of tokenizer_config.json in the form of a normalizer."""
    config = files.tokenizer_config
    return {name: config.get(stated) for name, stated in _SETTINGS.items()}
