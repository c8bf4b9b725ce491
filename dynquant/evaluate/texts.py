"""The texts of an evaluation, cut into windows of tokens.

As in llama-perplexity: each text is tokenized as a whole, cut into windows of `context` tokens
without overlap, and the first token of each window is replaced by the BOS token if llama.cpp adds
one before a prompt. The tokens in the second half of a window are predicted, so that each has at
least half of the context before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynquant.arrays import I32
from dynquant.errors import EvalError
from dynquant.texts import Text, shares, windows_of

SMALLEST_CONTEXT = 8


@dataclass(frozen=True)
class Windows:
    """Windows of tokens, those of each text in order.

    tokens: int32 [n, context]
    texts:  for each window, the number of its text
    """

    tokens: I32
    texts: tuple[int, ...]

    @property
    def context(self) -> int:
        """Return the tokens of a window."""
        return self.tokens.shape[1]

    @property
    def first(self) -> int:
        """Return the first position of a window whose next token is scored."""
        return first_scored(self.context)

    @property
    def n_scored(self) -> int:
        """Return how many tokens are scored in each window."""
        return n_scored(self.context)

    @property
    def sha256(self) -> str:
        """Return the hash of the token ids, little-endian int32, window after window."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)


def first_scored(context: int) -> int:
    """Return the first position of a window whose next token is scored."""
    return context // 2


def n_scored(context: int) -> int:
    """Return how many tokens are scored in a window."""
    return context - 1 - first_scored(context)


def cut(
    texts: Sequence[Text], tokens: Sequence[I32], *, context: int, limit: int, bos: int | None
) -> Windows:
    """Cut the tokens of texts into windows.

    tokens: int32 of any length, one array for each text
    limit:  tokens in all; the windows are shared out equally among the texts, and what a short
            text leaves is shared out among the others
    bos:    the token that replaces the first of each window; None replaces nothing

    Raises EvalError with all texts that have less than one window, if the limit leaves a text
    without one, and if all together have fewer than two: an interval needs at least two.
    """
    if context < SMALLEST_CONTEXT:
        raise EvalError(f"--context {context}: must be at least {SMALLEST_CONTEXT}")
    EvalError.raise_any(
        f"{text.name}: has {len(its):,} tokens, too few for a window of {context:,};"
        " use a longer text or a smaller --context"
        for text, its in zip(texts, tokens, strict=True)
        if len(its) < context
    )
    if limit < (least := context * max(2, len(texts))):
        raise EvalError(
            f"--tokens {limit}: too few for a window of {context:,} tokens of each text, and for"
            f" two in all; use at least {least:,}"
        )
    counts = shares([len(its) // context for its in tokens], limit // context)
    if sum(counts) < 2:
        raise EvalError(
            f"{', '.join(text.name for text in texts)}: one window of {context:,} tokens; intervals"
            " need at least two: use a longer text, more --tokens or a smaller --context"
        )
    windows = np.concatenate(
        [windows_of(its, context, n, bos) for its, n in zip(tokens, counts, strict=True)]
    )
    return Windows(windows, tuple(i for i, n in enumerate(counts) for _ in range(n)))
