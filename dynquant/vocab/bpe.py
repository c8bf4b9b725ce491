"""Byte-level BPE vocabularies from tokenizer.json, or from vocab.json and merges.txt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from gguf.constants import Keys as Gguf
from tokenizers import models

from dynquant.errors import VocabError
from dynquant.keys import Keys, i32s, string, strings
from dynquant.untrusted import shown
from dynquant.vocab.files import (
    TokenizerFiles,
    as_id,
    as_list,
    read_text,
    some,
)
from dynquant.vocab.pretokenizer import check_name, recognise
from dynquant.vocab.pretypes import PreType
from dynquant.vocab.rules import BYTE_LEVEL, check_rules
from dynquant.vocab.special import Special, read_special
from dynquant.vocab.templates import chat_template_keys
from dynquant.vocab.tokens import Token, added_type, lay_out

Merge = tuple[str, str]

MAX_LETTERS = 4096
"""Limit on a token's length in a vocabulary with merges, since all its splits in two are tried. The
longest in use, runs of spaces or signs, have some hundreds of characters."""

# The byte letter of a space. In a GGUF a plain space separates the two parts of a merge.
_BYTE_SPACE = "\u0120"


@dataclass(frozen=True)
class BpeModel:
    """A vocabulary and its merges, best first.

    path:          the file they were read from
    ids:           the id of each token, spelled in byte letters
    ignore_merges: whether a piece that is a token stays whole, even if the merges do not produce it
    """

    path: Path
    ids: Mapping[str, int]
    merges: Sequence[Merge]
    ignore_merges: bool


def read_bpe(files: TokenizerFiles, pre: str | None) -> Keys:
    """Return the keys of a byte-level BPE tokenizer.

    pre: llama.cpp's name of the pre-tokenizer if the user gives it; None to recognise it

    Raises VocabError if files are damaged or contradict each other, or if the pre-tokenizer is not
    known.
    """
    if pre is not None:
        check_name(pre)
    path = files.folder / ("tokenizer.json" if files.tokenizer else "vocab.json")
    # Without a name, other normalizers are refused together with the pre-tokenizer's rules.
    kept = f"--pre {pre} accepts other tokens"
    check_rules(path, files, BYTE_LEVEL, frozenset(), kept=kept)
    vocab, merges = read_bpe_model(files)
    VocabError.raise_any(
        [
            *contradictions(path, vocab, files),
            *unknown_parts(path, vocab, merges),
            *unsupported_settings(path, files.model),
        ]
    )
    laid = {i: Token(text, TokenType.NORMAL) for text, i in vocab.items()}
    laid |= {i: Token(token.text, added_type(token)) for i, token in files.added_tokens.items()}
    tokens = lay_out(files.folder, laid, files.vocab_size)

    special = read_special(files, tokens)
    # llama.cpp's default differs between pre-tokenizers, so the key is always written.
    special.add.setdefault("bos", False)
    model = BpeModel(path, vocab, merges, files.model.get("ignore_merges") is True)
    found = recognise(files, has_bos="bos" in special.ids) if pre is None else pre
    return bpe_keys(files, model, tokens, special, found)


def bpe_keys(
    files: TokenizerFiles,
    model: BpeModel,
    tokens: Sequence[Token],
    special: Special,
    pre: PreType | str,
) -> Keys:
    """Return the keys of a byte-level vocabulary.

    pre: the recognised pre-tokenizer, or the name that the user gives

    Raises VocabError if the recognised pre-tokenizer handles whole words differently.
    """
    if isinstance(pre, PreType):
        added = {token.text for token in files.added_tokens.values()}
        _check_ignore_merges(model, pre, [text for text in model.ids if text not in added])
        pre = pre.name
    return {
        Gguf.Tokenizer.MODEL: string("gpt2"),
        Gguf.Tokenizer.PRE: string(pre),
        Gguf.Tokenizer.LIST: strings([token.text for token in tokens]),
        Gguf.Tokenizer.TOKEN_TYPE: i32s([int(token.type) for token in tokens]),
        Gguf.Tokenizer.MERGES: strings(
            [
                f"{a.replace(' ', _BYTE_SPACE)} {b.replace(' ', _BYTE_SPACE)}"
                for a, b in model.merges
            ]
        ),
        **special.keys(),
        **chat_template_keys(files),
    }


def read_bpe_model(files: TokenizerFiles) -> tuple[dict[str, int], list[Merge]]:
    """Return the ids of the tokens by text, and the merges, best first."""
    if files.tokenizer:
        path = files.folder / "tokenizer.json"
        vocab = files.part(files.model, "vocab")
        merges = _json_merges(path, as_list(files.model.get("merges"), f"{path}: 'merges'"))
    else:
        path = files.folder / "vocab.json"
        vocab = files.read("vocab.json")
        merges = _text_merges(files.folder / "merges.txt")
    ids = {text: as_id(i, f"{path}: {shown(text)}") for text, i in vocab.items()}
    if not ids:
        raise VocabError(f"{path}: the vocabulary is empty; download the file again")
    VocabError.raise_any(
        f"{path}: {shown(text)} has {len(text)} characters; at most {MAX_LETTERS} are read"
        for text in ids
        if len(text) > MAX_LETTERS
    )
    texts: dict[int, str] = {}
    twice = [
        f"{path}: {shown(text)} and {shown(texts[i])} both have id {i}; remove the wrong one"
        for text, i in ids.items()
        if texts.setdefault(i, text) != text
    ]
    VocabError.raise_any(twice)
    return ids, merges


def _json_merges(path: Path, values: Sequence[Any]) -> list[Merge]:
    """Read merges that are strings `a b`, or pairs, whose parts may contain spaces."""
    merges: list[Merge] = []
    wrong: list[Any] = []
    for value in values:
        parts: Any = value.split(" ") if isinstance(value, str) else value
        match parts:
            case [str(left), str(right)]:
                merges.append((left, right))
            case _:
                wrong.append(value)
    if wrong:
        raise VocabError(f"{path}: not merges of two parts: {some(wrong)}; fix the file")
    return merges


def _text_merges(path: Path) -> list[Merge]:
    """Read merges.txt: a merge `a b` per line; the first line may state the version."""
    merges: list[Merge] = []
    wrong: list[str] = []
    # Not splitlines(): some byte letters are line ends in Unicode.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            wrong.append(
                f"{path}:{number}: {shown(line)} is not a merge of two parts; fix the file"
            )
        merges.append((left, right))
    VocabError.raise_any(wrong[:5])
    return merges


def contradictions(path: Path, vocab: Mapping[str, int], files: TokenizerFiles) -> Iterable[str]:
    """Yield a message for each added token that contradicts the vocabulary."""
    texts = {i: text for text, i in vocab.items()}
    for i, token in files.added_tokens.items():
        if texts.get(i, token.text) != token.text:
            yield (
                f"{path}: id {i} is {shown(texts[i])} in the vocabulary and {shown(token.text)}"
                " among the added tokens; remove the wrong one"
            )
        elif vocab.get(token.text, i) != i:
            yield (
                f"{path}: {shown(token.text)} has id {vocab[token.text]} in the vocabulary and {i}"
                " among the added tokens; remove the wrong one"
            )


def unknown_parts(path: Path, vocab: Mapping[str, int], merges: Sequence[Merge]) -> Iterable[str]:
    """Yield a message if merges name tokens that are not in the vocabulary."""
    bad = [(a, b) for a, b in merges if a not in vocab or b not in vocab or a + b not in vocab]
    if bad:
        texts = {text for a, b in bad for text in (a, b, a + b) if text not in vocab}
        yield (
            f"{path}: {len(bad)} of {len(merges)} merges name tokens that are not in the vocabulary"
            f" ({some(sorted(texts))}); take vocabulary and merges from one tokenizer"
        )


def unsupported_settings(path: Path, model: Mapping[str, Any]) -> Iterable[str]:
    """Yield a message for each setting that llama.cpp's BPE does not have."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            yield (
                f"{path}: {name} is {shown(model[name])}, but llama.cpp's BPE has no such setting;"
                " this tokenizer cannot be converted"
            )


def _check_ignore_merges(model: BpeModel, pre: PreType, plain: Iterable[str]) -> None:
    """Raise VocabError if llama.cpp differs in keeping pieces whole that are tokens.

    plain: the tokens that are not added ones

    The difference matters only for tokens that the merges do not produce from their own text.
    """
    if pre.ignore_merges == model.ignore_merges:
        return
    bpe = models.BPE(dict(model.ids), list(model.merges))
    unreached = [text for text in plain if [t.value for t in bpe.tokenize(text)] != [text]]
    if unreached:
        raise VocabError(
            f"{model.path}: ignore_merges is {str(model.ignore_merges).lower()}, but in llama.cpp's"
            f" {pre.name} it is {str(pre.ignore_merges).lower()}, which changes the result for"
            f" {len(unreached)} tokens that the merges do not produce ({some(unreached)}); to"
            f" accept this, give --pre {pre.name}"
        )
