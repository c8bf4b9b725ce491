"""SentencePiece vocabularies as Llama has them: tokenizer.model, or the same told as merges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gguf import TokenType
from gguf.constants import Keys as Gguf

from dynquant.errors import VocabError
from dynquant.keys import Keys, boolean, f32s, i32s, string, strings
from dynquant.untrusted import shown
from dynquant.vocab.bpe import Merge, read_bpe_model
from dynquant.vocab.files import AddedToken, TokenizerFiles, as_list, as_object
from dynquant.vocab.sentencepiece import SentencePieceModel
from dynquant.vocab.special import read_special
from dynquant.vocab.templates import chat_template_keys
from dynquant.vocab.tokens import ADDED_SCORE, SPACE, Token, added_type, lay_out

_SHOWN_PAIRS = 5

BYTE = re.compile("<0x[0-9A-F]{2}>")


def read_spm(files: TokenizerFiles, path: Path, model: SentencePieceModel) -> Keys:
    """Return the keys of a SentencePiece model that llama.cpp merges by score.

    path: where the model was read

    Raises VocabError for a model that this cannot be: words or characters for pieces, or no pieces
    for single bytes.
    """
    if model.model_type not in ("bpe", "unigram"):
        raise VocabError(
            f"{path}: a SentencePiece model of type {model.model_type!r}, which llama.cpp does not"
            " run; there is no GGUF for this tokenizer"
        )
    prefix = files.tokenizer_config.get("add_prefix_space")
    return _keys(
        files,
        dict(enumerate(model.pieces)),
        files.added_tokens,
        space_prefix=prefix if isinstance(prefix, bool) else model.add_dummy_prefix,
        model_ids=model.special_ids,
    )


def read_spm_json(files: TokenizerFiles) -> Keys:
    """Return the keys of a SentencePiece model told as a tokenizer.json with byte fallback.

    llama.cpp merges the pair whose result scores highest, so the scores are the order in which
    the merges make their results. Raises VocabError where scores cannot say what the merges say.
    """
    path = files.folder / "tokenizer.json"
    vocab, merges = read_bpe_model(files)
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
            # What no merge makes, a single letter, is never compared.
            n_scored += text not in scores
            tokens[i] = Token(text, TokenType.NORMAL, scores.get(text, -float(n_scored)))
    # Gemma lists its runs of spaces as added tokens too, spelled as they stand in no text; what
    # takes spaces together are the merges.
    merged = {text for text in scores if SPACE in text}
    added_tokens = {
        i: token
        for i, token in files.added_tokens.items()
        if token.special or token.text not in merged
    }
    return _keys(files, tokens, added_tokens, space_prefix=_space_prefix(files), model_ids={})


def _keys(
    files: TokenizerFiles,
    pieces: Mapping[int, Token],
    added: Mapping[int, AddedToken],
    *,
    space_prefix: bool,
    model_ids: Mapping[str, int],
) -> Keys:
    texts = {token.text for token in pieces.values()}
    # Gemma spells the byte of a tab as a tab, which llama.cpp falls back to as well.
    missing = [b for b in range(256) if not texts & {f"<0x{b:02X}>", chr(b) if b < 128 else ""}]
    if missing:
        raise VocabError(
            f"{files.folder}: the SentencePiece model lacks pieces for {len(missing)} of the 256"
            " bytes that llama.cpp falls back to; there is no GGUF for this tokenizer"
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


def prepared(token: Token) -> Token:
    """Spell a user-defined piece as it stands in a text: llama.cpp finds it before it splits."""
    if token.type is TokenType.USER_DEFINED:
        return Token(token.text.replace(SPACE, " "), token.type, token.score)
    return token


def added_piece(token: AddedToken) -> Token:
    """Return an added token as a piece."""
    return prepared(Token(token.text, added_type(token), ADDED_SCORE))


def _scores(merges: Sequence[Merge]) -> dict[str, float]:
    """Score the results of merges: -1 for the first, and less for each that comes later.

    Several merges make one result; they follow each other unless the model that they were made
    from scores results alike. Results whose merges are mixed therefore get the same score.
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
    """Say which pairs llama.cpp would merge because they make a token, and the merges would not.

    added: texts of added tokens, which are taken out before anything is merged
    """
    listed = set(merges)
    unlisted = (
        (text, k)
        for text in vocab
        if not BYTE.fullmatch(text) and text not in added
        for k in range(1, len(text))
        if text[:k] in vocab and text[k:] in vocab and (text[:k], text[k:]) not in listed
    )
    # Some are enough for the message: there can be a thousand times as many as there are letters.
    first = [f"{text[:k]} {text[k:]}" for text, k in islice(unlisted, _SHOWN_PAIRS)]
    if first:
        n = len(first) + sum(1 for _ in unlisted)
        yield (
            f"{path}: BPE with byte_fallback, not from SentencePiece: {n} pairs that"
            f" make a token are no merges ({', '.join(map(shown, first))}), and llama.cpp would"
            " merge them; put the tokenizer.model of the model beside it"
        )


def _space_prefix(files: TokenizerFiles) -> bool:
    """Whether the normalizer or the pre-tokenizer puts a space before a text."""
    stated = files.tokenizer_config.get("add_prefix_space")
    if isinstance(stated, bool):
        return stated
    for name, steps in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        part = files.part(files.tokenizer, name)
        for item in as_list(part.get(steps, [part]), f"tokenizer.json: {name!r}"):
            step: dict[str, Any] = as_object(item, f"tokenizer.json: {name!r}")
            if step.get("type") == "Prepend":
                return True
            if step.get("type") == "Metaspace":
                return step.get("prepend_scheme", "always") != "never"
    return False
