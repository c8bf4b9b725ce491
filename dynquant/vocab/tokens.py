"""The list of tokens that a GGUF holds: text, type and score of every id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import TokenType

from dynquant.errors import VocabError
from dynquant.untrusted import shown
from dynquant.vocab.files import AddedToken, some

SPACE = "\u2581"  # stands for a space in SentencePiece's tokens

# Texts that models declare as ordinary added tokens though they steer the model: Gemma's and
# DeepSeek-Coder's, as llama.cpp's converter knows them.
_STEERING = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_STEERING_BRACKETS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))

# llama.cpp's scores of what the tokenizer's model does not score; no merge ever reads them.
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0

MAX_TOKENS = 1 << 20
"""Of a vocabulary, with those that a config.json asks to be padded to; the largest in use has
900,000."""


@dataclass(frozen=True)
class Token:
    """One entry of the vocabulary."""

    text: str
    type: TokenType
    score: float = 0.0


def added_type(token: AddedToken) -> TokenType:
    """CONTROL for a token that is special or looks it, USER_DEFINED for ordinary text."""
    text = token.text
    steering = text in _STEERING or any(
        text.startswith(left) and text.endswith(right) for left, right in _STEERING_BRACKETS
    )
    return TokenType.CONTROL if token.special or steering else TokenType.USER_DEFINED


def lay_out(folder: Path, tokens: Mapping[int, Token], vocab_size: int | None) -> Sequence[Token]:
    """Put tokens in the order of their ids; ids without a token become `[PADi]`, never used.

    vocab_size: rows of the model's embedding, which needs a token each; None for as many as there
                are tokens

    Raises VocabError for ids beyond the embedding, for more than MAX_TOKENS, and for a text that
    two ids have: llama.cpp aborts on it.
    """
    size = vocab_size if vocab_size is not None else len(tokens)
    if size > MAX_TOKENS:
        raise VocabError(
            f"{folder}: a vocabulary of {shown(size)} tokens; at most {MAX_TOKENS} are written"
        )
    beyond = {token_id: token.text for token_id, token in tokens.items() if token_id >= size}
    if beyond:
        what = (
            f"config.json's vocab_size is {size}"
            if vocab_size is not None
            else "config.json has no vocab_size"
        )
        raise VocabError(
            f"{folder}: the tokenizer has {len(tokens)} tokens, and {shown(beyond[max(beyond)])}"
            f" has id {max(beyond)}, but {what}; take both from one model, or give the embedding a"
            " row for every token (resize_token_embeddings of transformers)"
        )
    laid = [tokens.get(i, Token(f"[PAD{i}]", TokenType.UNUSED, PAD_SCORE)) for i in range(size)]
    ids: dict[str, int] = {}
    twice = [t.text for i, t in enumerate(laid) if ids.setdefault(t.text, i) != i]
    if twice:
        raise VocabError(
            f"{folder}: two token ids have the same text: {some(twice)}; llama.cpp cannot tell them"
            " apart, remove the wrong one from the tokenizer's files"
        )
    return laid
