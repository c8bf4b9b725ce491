"""The token list of a GGUF: text, type and score of every id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import TokenType

from dynquant.errors import VocabError
from dynquant.untrusted import shown
from dynquant.vocab.files import AddedToken, some

SPACE = "\u2581"  # stands for a space in SentencePiece's tokens

# Control tokens that models (Gemma, DeepSeek-Coder) declare as ordinary added tokens; the same as
# in llama.cpp's converter.
_STEERING = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_STEERING_BRACKETS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))

# Scores in llama.cpp's converter of tokens without a score; merging never uses them.
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0

MAX_TOKENS = 1 << 20
"""Limit on the size of a vocabulary, padding included; the largest in use has 900,000 tokens."""


@dataclass(frozen=True)
class Token:
    """One entry of the vocabulary."""

    text: str
    type: TokenType
    score: float = 0.0


def added_type(token: AddedToken) -> TokenType:
    """Return CONTROL if a token is special or looks special, else USER_DEFINED."""
    text = token.text
    steering = text in _STEERING or any(
        text.startswith(left) and text.endswith(right) for left, right in _STEERING_BRACKETS
    )
    return TokenType.CONTROL if token.special or steering else TokenType.USER_DEFINED


def lay_out(folder: Path, tokens: Mapping[int, Token], vocab_size: int | None) -> Sequence[Token]:
    """Return tokens in the order of their ids; ids without a token become an unused `[PADi]`.

    vocab_size: rows of the model's embedding, each of which needs a token; None for the number of
                tokens

    Raises VocabError if an id is beyond the embedding, if there are more than MAX_TOKENS, or if two
    ids have the same text, on which llama.cpp aborts.
    """
    size = vocab_size if vocab_size is not None else len(tokens)
    if size > MAX_TOKENS:
        raise VocabError(
            f"{folder}: a vocabulary of {shown(size)} tokens; at most {MAX_TOKENS} are written"
        )
    beyond = {token_id: token.text for token_id, token in tokens.items() if token_id >= size}
    if beyond:
        declared = (
            f"config.json's vocab_size is {size}"
            if vocab_size is not None
            else "config.json has no vocab_size"
        )
        raise VocabError(
            f"{folder}: the tokenizer has {len(tokens)} tokens, and {shown(beyond[max(beyond)])}"
            f" has id {max(beyond)}, but {declared}; take both from one model, or extend the"
            " embedding to all tokens (resize_token_embeddings of transformers)"
        )
    laid = [tokens.get(i, Token(f"[PAD{i}]", TokenType.UNUSED, PAD_SCORE)) for i in range(size)]
    ids: dict[str, int] = {}
    twice = [t.text for i, t in enumerate(laid) if ids.setdefault(t.text, i) != i]
    if twice:
        raise VocabError(
            f"{folder}: two token ids have the same text: {some(twice)}; llama.cpp needs different"
            " texts, remove the wrong one from the tokenizer's files"
        )
    return laid
