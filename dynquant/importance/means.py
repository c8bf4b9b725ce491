"""The means of a matrix's inputs, without what chance gives the means of few tokens.

The mean of n tokens is off by the standard deviation over sqrt(n) in each channel. Relative to the
mean squares q of the channels, the squares of the means add up to S = sum mean^2 / q, of which
chance is expected to give N = sum (1 - mean^2 / q) / (n - 1). The means are multiplied by
1 - N / S, and are unknown where N exceeds S: the positive-part estimator of James and Stein, whose
squared error is smaller than that of the means themselves, whatever the true means are. Without
it, an encoder would give up accuracy to cancel the bias for the few tokens that an expert saw.
"""

from __future__ import annotations

import numpy as np

from dynquant.arrays import F32
from dynquant.importance.experts import sum_in_order


def without_chance(linear: F32, squares: F32, count: int) -> F32 | None:
    """Return the means of a matrix's inputs, float32 [n_per_row]; None if they are all chance.

    linear, squares: float32 [n_per_row], sums of the inputs, and of their squares
    count:           tokens that were summed
    """
    if count < 2:
        return None
    means, q = linear.astype(np.float64) / count, squares.astype(np.float64) / count
    share = np.minimum(np.divide(means * means, q, out=np.zeros_like(q), where=q > 0), 1)
    found = sum_in_order(share)
    by_chance = sum_in_order(np.where(q > 0, 1 - share, 0)) / (count - 1)
    if found <= by_chance:
        return None
    return (means * (1 - by_chance / found)).astype(np.float32)
