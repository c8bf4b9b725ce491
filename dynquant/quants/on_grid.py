"""Whether blocks are the rows that they were made of, which lie on the grid of their type.

A checkpoint stores d * q rounded to its own type, so the blocks give the same weights if these are
equal after that rounding. Scales that F16 cannot hold leave more: at most a rounding of the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynquant.arrays import U8
from dynquant.quants.codec import decode
from dynquant.quants.encoder import encode
from dynquant.quants.table import ALL, QuantType

_ROUNDING = 2.0**-7
"""More than the relative difference of a weight on the grid: half a step of BF16 (2**-8), and of
F16. A weight beside the grid is off by a good part of a step, which is an eighth of the largest
weight of a block of Q4_0, or more."""


@dataclass(frozen=True)
class Fit:
    """How far blocks reproduce rows.

    n_rounded: weights that are not equal after rounding to the type of the rows
    beside:    the first row with a weight beside the grid; None if there is none
    """

    n_rounded: int
    beside: int | None


def fit_of(rows: U8, stored: QuantType, n_per_row: int, qtype: QuantType, blocks: U8) -> Fit:
    """Compare rows with the blocks that they were encoded to.

    rows:   uint8, the bytes of the rows, in any type
    blocks: uint8 [n_rows, qtype.row_size(n_per_row)]
    """
    x = decode(rows.reshape(len(blocks), -1), stored, n_per_row)
    y = decode(blocks, qtype, n_per_row)
    same = x == y
    if stored != ALL["F32"] and stored.is_float:
        same |= decode(encode(y, stored), stored, n_per_row) == x
    if same.all():
        return Fit(0, None)
    beside = (np.abs(x - y) > _ROUNDING * np.abs(x)).any(axis=1)
    return Fit(int(same.size - same.sum()), int(beside.argmax()) if beside.any() else None)
