"""Repetition without end in generated tokens.

A text loops if its tail is a pattern of 1 to 64 tokens that is repeated at least 4 times and covers
at least 64 tokens, or a longer pattern, of up to 1,024 tokens, repeated at least 4 times. The last
repetition may be incomplete: the text ends where the number of tokens was reached.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST = 1024
REPEATS = 4
COVERED = 64


def loop_of(tokens: Sequence[int]) -> int | None:
    """Return the length of the shortest pattern that a text ends with in a loop, or None."""
    array = np.asarray(tokens, np.int64)
    n = len(array)
    for period in range(1, min(LONGEST, n // REPEATS) + 1):
        is_same = array[period:] == array[:-period]
        differing = np.flatnonzero(~is_same)
        run = len(is_same) - (int(differing[-1]) + 1 if differing.size else 0)
        if run + period >= max(COVERED, REPEATS * period):
            return period
    return None
