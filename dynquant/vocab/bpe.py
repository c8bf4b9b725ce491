"""Byte-level BPE: the vocabularies of tokenizer.json, or of vocab.json and merges.txt."""

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
from dynquant.vocab.special import Special, read_special
from dynquant.vocab.templates import chat_template_keys
from dynquant.vocab.tokens import Token, added_type, lay_out

Merge = tuple[str, str]

MAX_LETTERS = 4096
"""Of a token in a vocabulary with merges: every way to part it in two is looked at. The longest in
use, rows of spaces or signs, have some hundreds."""

# A space inside a part of a merge, as byte letters have it: in a GGUF a space parts the two.
_BYTE_SPACE = "\u0120"


@dataclass(frozen=True)
class BpeModel:
    """A vocabulary and its merges, best first.

    path:          the file that they come from
    ids:           of each text, in byte letters
    ignore_merges: whether a whole piece that is a token is that token, whatever the merges say
    """

    path: Path
    ids: Mapping[str, int]
    merges: Sequence[Merge]
    ignore_merges: bool


def read_bpe(files: TokenizerFiles, pre: str | None) -> Keys:
    """Return the keys of a byte-level BPE tokenizer.

    pre: llama.cpp's name of the pre-tokenizer, where the user settles it; None to recognise it

    Raises VocabError for files that are damaged or contradict each other, and for a pre-tokenizer
    that is not known.
    """
    if pre is not None:
        check_name(pre)
    path = files.folder / ("tokenizer.json" if files.tokenizer else "vocab.json")
    vocab, merges = read_bpe_model(files)
    VocabError.raise_any(
        [
            *contradictions(path, vocab, files),
            *(_unknown_parts(path, vocab, merges)),
            *(_unsupported(path, files.model)),
        ]
    )
    laid = {i: Token(text, TokenType.NORMAL) for text, i in vocab.items()}
    laid |= {i: Token(token.text, added_type(token)) for i, token in files.added_tokens.items()}
    tokens = lay_out(files.folder, laid, files.vocab_size)

    special = read_special(files, tokens)
    # llama.cpp adds a BOS by default for some names; what the tokenizer does is said for all.
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

    pre: the pre-tokenizer that was recognised, or the name that the user gives

    Raises VocabError where the pre-tokenizer that was recognised treats whole words otherwise.
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
    """Return the ids of the vocabulary's texts, and the merges, best first."""
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
        f"{path}: {shown(text)} has {len(text)} letters; at most {MAX_LETTERS} are read"
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
    """Read merges that are strings `a b` or, since their parts may have spaces, pairs."""
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
        raise VocabError(f"{path}: {some(wrong)} are not merges of two parts; mend the file")
    return merges


def _text_merges(path: Path) -> list[Merge]:
    """Read merges.txt: a line `a b` each; a first line may give the version."""
    merges: list[Merge] = []
    wrong: list[str] = []
    # Not splitlines(): a byte letter may be what Unicode takes for the end of a line.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            wrong.append(
                f"{path}:{number}: {shown(line)} is not a merge of two parts; mend the file"
            )
        merges.append((left, right))
    VocabError.raise_any(wrong[:5])
    return merges


def contradictions(path: Path, vocab: Mapping[str, int], files: TokenizerFiles) -> Iterable[str]:
    """Say where an added token is not what the vocabulary has."""
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


def _unknown_parts(path: Path, vocab: Mapping[str, int], merges: Sequence[Merge]) -> Iterable[str]:
    """Say which merges name a token that is not in the vocabulary."""
    bad = [(a, b) for a, b in merges if a not in vocab or b not in vocab or a + b not in vocab]
    if bad:
        texts = {text for a, b in bad for text in (a, b, a + b) if text not in vocab}
        yield (
            f"{path}: {len(bad)} of {len(merges)} merges name tokens that the vocabulary lacks"
            f" ({some(sorted(texts))}); vocabulary and merges are not of one tokenizer"
        )


def _unsupported(path: Path, model: Mapping[str, Any]) -> Iterable[str]:
    """Say what the model does that llama.cpp's BPE does not."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            yield (
                f"{path}: {name} is {shown(model[name])}, which llama.cpp's BPE does not have;"
                " there is no GGUF for this tokenizer"
            )


def _check_ignore_merges(model: BpeModel, pre: PreType, plain: Iterable[str]) -> None:
    """Raise VocabError if llama.cpp would take whole words for tokens where the tokenizer does not.

    The two differ only on tokens that their own merges do not lead to; where every token is what
    the merges make of its text, `ignore_merges` changes nothing.
    """
    if pre.ignore_merges == model.ignore_merges:
        return
    bpe = models.BPE(dict(model.ids), list(model.merges))
    unreached = [text for text in plain if [t.value for t in bpe.tokenize(text)] != [text]]
    if unreached:
        raise VocabError(
            f"{model.path}: ignore_merges is {str(model.ignore_merges).lower()}, but llama.cpp's"
            f" {pre.name} has it {str(pre.ignore_merges).lower()}, and merges do not lead to"
            f" {len(unreached)} tokens ({some(unreached)}); if that is of no concern, give"
            f" --pre {pre.name}"
        )
