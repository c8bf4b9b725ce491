"""SentencePiece vocabularies as in Llama: tokenizer.model, or the same as a list of merges."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

from gguf import TokenType
from gguf.constants import Keys as Gguf

from dynquant.errors import VocabError
from dynquant.keys import Keys, boolean, f32s, i32s, string, strings
from dynquant.untrusted import shown
from dynquant.vocab.bpe import Merge, read_bpe_model, unsupported_settings
from dynquant.vocab.files import AddedToken, TokenizerFiles, some
from dynquant.vocab.rules import NO_SECOND_SPACE, SPACES, SPANNING, SPM, check_rules, steps_of
from dynquant.vocab.sentencepiece import SentencePieceModel
from dynquant.vocab.special import read_special
from dynquant.vocab.templates import chat_template_keys
from dynquant.vocab.tokens import ADDED_SCORE, SPACE, Token, added_type, lay_out

_SHOWN_PAIRS = 5

BYTE = re.compile("<0x[0-9A-F]{2}>")


def read_spm(files: TokenizerFiles, path: Path, model: SentencePieceModel) -> Keys:
    """Return the keys of a SentencePiece model that llama.cpp merges by score.

    path: the file that the model was read from

    Raises VocabError if the model's type is not supported (words, characters), if it has no
    pieces for single bytes, or if it or a tokenizer.json has rules that llama.cpp does not have.
    """
    if model.model_type not in ("bpe", "unigram"):
        raise VocabError(
            f"{path}: llama.cpp does not support SentencePiece models of type {model.model_type!r};"
            " this tokenizer cannot be converted"
        )
    if files.tokenizer:
        _check_json(files)
        _check_same(files, path, model)
    else:
        check_model(files, path, model)
    return spm_keys(
        files,
        dict(enumerate(model.pieces)),
        files.added_tokens,
        space_prefix=_chosen_prefix(files, model.add_dummy_prefix),
        model_ids=model.special_ids,
    )


def read_spm_json(files: TokenizerFiles) -> Keys:
    """Return the keys of a SentencePiece model in the form of a tokenizer.json with byte fallback.

    llama.cpp merges the pair whose result has the highest score, so scores are assigned in the
    order of the merges. Raises VocabError if no scores are equivalent to the merges, or if the file
    has rules that llama.cpp does not have.
    """
    path = files.folder / "tokenizer.json"
    vocab, merges = read_bpe_model(files)
    _check_json(files, merges)
    added = {token.text for token in files.added_tokens.values()}
    VocabError.raise_any(_unlisted_merges(str(path), vocab, merges, added))
    scores = _scores(merges)
    unknown = files.model.get("unk_token")
    tokens: dict[int, Token] = {}
    n_scored = len(scores)
    for text, i in sorted(vocab.items(), key=lambda item: item[1]):
        if BYTE.fullmatch(text):
            tokens[i] = Token(text, TokenType.BYTE)
        elif text == unknown:
            tokens[i] = Token(text, TokenType.UNKNOWN)
        else:
            # Single letters, which no merge produces, are never compared.
            n_scored += text not in scores
            tokens[i] = Token(text, TokenType.NORMAL, scores.get(text, -float(n_scored)))
    # Gemma lists runs of spaces as added tokens too, in a spelling that no text has; they are
    # joined by merges.
    merged = {text for text in scores if SPACE in text}
    added_tokens = {
        i: token
        for i, token in files.added_tokens.items()
        if token.special or token.text not in merged
    }
    return spm_keys(
        files,
        tokens,
        added_tokens,
        space_prefix=_chosen_prefix(files, _space_prefix(files)),
        model_ids={},
    )


def spm_keys(
    files: TokenizerFiles,
    pieces: Mapping[int, Token],
    added: Mapping[int, AddedToken],
    *,
    space_prefix: bool,
    model_ids: Mapping[str, int],
) -> Keys:
    """Return the keys of pieces and added tokens by id.

    space_prefix: whether a text gets a space in front
    model_ids:    ids of special tokens that the model states

    Raises VocabError if there are no pieces for single bytes, or if ids are beyond the vocabulary.
    """
    if missing := missing_bytes({token.text for token in pieces.values()}):
        raise VocabError(
            f"{files.folder}: the SentencePiece model has no pieces for {len(missing)} of the 256"
            " bytes, which llama.cpp needs; this tokenizer cannot be converted"
        )
    laid = {i: prepared(token) for i, token in pieces.items()}
    laid |= {i: added_piece(token) for i, token in added.items()}
    tokens = lay_out(files.folder, laid, files.vocab_size)
    special = read_special(files, tokens, model_ids)
    return {
        Gguf.Tokenizer.MODEL: string("llama"),
        Gguf.Tokenizer.PRE: string("default"),
        Gguf.Tokenizer.LIST: strings([token.text for token in tokens]),
        Gguf.Tokenizer.SCORES: f32s([token.score for token in tokens]),
        Gguf.Tokenizer.TOKEN_TYPE: i32s([int(token.type) for token in tokens]),
        **special.keys(),
        Gguf.Tokenizer.ADD_PREFIX: boolean(space_prefix),
        **chat_template_keys(files),
    }


def missing_bytes(texts: Container[str]) -> list[int]:
    """Return the bytes for which there is no token.

    Gemma has a tab instead of <0x09>; llama.cpp falls back to either.
    """
    return [
        b for b in range(256) if f"<0x{b:02X}>" not in texts and not (b < 128 and chr(b) in texts)
    ]


def prepared(token: Token) -> Token:
    """Spell a user-defined piece as in the text, where llama.cpp finds it before splitting."""
    if token.type is TokenType.USER_DEFINED:
        return Token(token.text.replace(SPACE, " "), token.type, token.score)
    return token


def added_piece(token: AddedToken) -> Token:
    """Return an added token as a piece."""
    return prepared(Token(token.text, added_type(token), ADDED_SCORE))


def _scores(merges: Sequence[Merge]) -> dict[str, float]:
    """Score the results of merges: -1 for the first, and less for each later one.

    Merges with one result follow each other, unless results have equal scores in the original
    model. Results whose merges are interleaved therefore get the same score.
    """
    last = {a + b: i for i, (a, b) in enumerate(merges)}
    scores: dict[str, float] = {}
    score, end = 0.0, -1
    for i, (a, b) in enumerate(merges):
        if i > end:
            score -= 1.0
        end = max(end, last[a + b])
        scores.setdefault(a + b, score)
    return scores


def _unlisted_merges(
    path: str, vocab: Mapping[str, int], merges: Sequence[Merge], added: set[str]
) -> Iterable[str]:
    """Yield a message if llama.cpp would merge pairs into tokens that the merges do not list.

    added: texts of added tokens, which are found before anything is merged
    """
    listed = set(merges)
    unlisted = (
        (text, k)
        for text in vocab
        if not BYTE.fullmatch(text) and text not in added
        for k in range(1, len(text))
        if text[:k] in vocab and text[k:] in vocab and (text[:k], text[k:]) not in listed
    )
    # Only the first are kept: there can be a thousand times as many as characters in the file.
    first = [f"{text[:k]} {text[k:]}" for text, k in islice(unlisted, _SHOWN_PAIRS)]
    if first:
        n = len(first) + sum(1 for _ in unlisted)
        yield (
            f"{path}: BPE with byte_fallback that is not from SentencePiece: llama.cpp would merge"
            f" {n} pairs that are not among the merges ({', '.join(map(shown, first))}); put the"
            " model's tokenizer.model into the same folder"
        )


def _chosen_prefix(files: TokenizerFiles, found: bool) -> bool:
    """Return whether a space is added before a text: as configured, or else as found in the model.

    Warns if tokenizer.json has another rule, and no class of transformers replaces it.
    """
    stated = files.tokenizer_config.get("add_prefix_space")
    chosen = stated if isinstance(stated, bool) else found
    if files.tokenizer and not own_rules(files) and chosen is not _space_prefix(files):
        other = "tokenizer_config.json" if stated is chosen else "the model"
        files.warn(
            f"{files.folder / 'tokenizer.json'}: the rules add {'no' if chosen else 'a'} space"
            f" before a text, but {other} adds {'one' if chosen else 'none'}, which is used; make"
            " the files agree"
        )
    return chosen


def _space_prefix(files: TokenizerFiles) -> bool:
    """Return whether the normalizer or the pre-tokenizer adds a space before a text."""
    for step in steps_of(files, "normalizer") + steps_of(files, "pre_tokenizer"):
        if step.get("type") == "Prepend":
            return True
        if step.get("type") == "Metaspace":
            return step.get("prepend_scheme", "always") != "never"
    return False


# Classes of transformers (5.x) that take only vocabulary and merges from a tokenizer.json and set
# the rules of SentencePiece themselves; the model types that have one if no class is stated; and
# those whose stated class is ignored (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS).
_OWN_RULES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
_GEMMAS = ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text")
_CLASS_IGNORED = ("phi3", "phimoe", "qwen2")


def own_rules(files: TokenizerFiles) -> str | None:
    """Return the class of transformers that sets the rules itself; None if the file's apply."""
    model_types = {str(config.get("model_type")) for config in files.configs}
    if model_types & set(_CLASS_IGNORED):
        return None
    stated: Any = files.tokenizer_config.get("tokenizer_class")
    if stated is None and model_types & set(_GEMMAS):
        stated = "GemmaTokenizer"
    name = stated.removesuffix("Fast") if isinstance(stated, str) else ""
    return name if name in _OWN_RULES else None


def _check_json(files: TokenizerFiles, merges: Sequence[Merge] | None = None) -> None:
    """Raise VocabError for rules of a tokenizer.json that llama.cpp does not have, or warn.

    merges: None to read them only if they matter
    """
    path = files.folder / "tokenizer.json"
    name = own_rules(files)
    kept = f"the output has the rules of transformers' {name}, which ignores it" if name else ""
    normalizers, splits = steps_of(files, "normalizer"), steps_of(files, "pre_tokenizer")
    facts: set[str] = set()
    if not any(step.get("type") == "Replace" for step in normalizers):
        facts.add(SPACES)
    if splits and any(SPACE in (a + b)[1:] for a, b in merges or _merges(files)):
        facts.add(SPANNING)
    check_rules(path, files, SPM, frozenset(facts), kept=kept)
    wrong = [*unsupported_settings(path, files.model)]
    if SPACES in facts and not any(step.get("type") == "Metaspace" for step in splits):
        wrong.append(
            f"{path}: neither normalizer nor pre-tokenizer replaces spaces by {SPACE}, as"
            " llama.cpp's SentencePiece does; this tokenizer cannot be converted"
        )
    if files.model.get("byte_fallback") is not True:
        wrong.append(
            f"{path}: byte_fallback is not true, but llama.cpp's SentencePiece always falls back to"
            " bytes; this tokenizer cannot be converted"
        )
    if files.model.get("ignore_merges") is True:
        wrong += _unmerged(path, files, merges)
    if not name:
        VocabError.raise_any(wrong)
    prefixed = any(step.get("type") == "Prepend" for step in normalizers)
    for step in splits:
        if step.get("type") == "Metaspace" and not prefixed:
            scheme = step.get("prepend_scheme", "always")
            if scheme == "always":
                files.warn(f"{path}: {NO_SECOND_SPACE}")
            elif scheme == "first":
                files.warn(
                    f"{path}: the tokenizer adds a space only before a text that begins with none,"
                    " but llama.cpp before every text and after each special token"
                )


def _merges(files: TokenizerFiles) -> Sequence[Merge]:
    return read_bpe_model(files)[1]


def _unmerged(path: Path, files: TokenizerFiles, merges: Sequence[Merge] | None) -> Iterable[str]:
    """Yield a message if tokens stay whole that the merges do not produce."""
    vocab, listed = read_bpe_model(files)
    made = {a + b for a, b in (listed if merges is None else merges)}
    added = {token.text for token in files.added_tokens.values()}
    whole = [t for t in vocab if len(t) > 1 and not (t in made or t in added or BYTE.fullmatch(t))]
    if whole:
        yield (
            f"{path}: ignore_merges is true, but llama.cpp's SentencePiece has no such setting,"
            f" which changes the result for {len(whole)} tokens that the merges do not produce"
            f" ({some(whole)}); this tokenizer cannot be converted"
        )


def _check_same(files: TokenizerFiles, path: Path, model: SentencePieceModel) -> None:
    """Warn if the SentencePiece model and tokenizer.json have other tokens at the same ids."""
    vocab = files.model.get("vocab")
    if not isinstance(vocab, dict):
        return
    ids = cast("dict[str, Any]", vocab)
    other = [
        (i, piece.text)
        for i, piece in enumerate(model.pieces)
        if piece.type is TokenType.NORMAL
        and ids.get(piece.text) != i
        and i not in files.added_tokens
    ]
    if other:
        i, text = other[0]
        files.warn(
            f"{path}: {len(other)} of {len(model.pieces)} pieces are not at their ids in"
            f" tokenizer.json, such as {shown(text)}, {i}; {path.name} is used; remove the file"
            " that does not belong to the model"
        )


def check_model(files: TokenizerFiles, path: Path, model: SentencePieceModel) -> None:
    """Raise VocabError for rules of a SentencePiece model that llama.cpp does not have, or warn."""
    rules = {
        "replaces characters by a table (precompiled_charsmap)": bool(model.charsmap),
        "replaces runs of spaces by one (remove_extra_whitespaces)": model.remove_extra_whitespaces,
    }
    wrong = [
        f"{path}: the model {what}, which llama.cpp's SentencePiece does not do"
        for what, holds in rules.items()
        if holds
    ]
    if name := own_rules(files):
        files.warn(*(f"{w}, nor does transformers' {name}" for w in wrong))
    else:
        VocabError.raise_any(f"{w}; this tokenizer cannot be converted" for w in wrong)
