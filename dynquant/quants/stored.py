"""Decode numbers that a checkpoint stores with scales beside them to float32 (csrc/stored.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dynquant.arrays import F32, I32, U8
from dynquant.quants import _core
from dynquant.quants.codec import isa_in_use

Number = Literal["E4M3", "E5M2", "E8M0", "I8", "FP4", "BITS"]
"""The stored numbers. BITS are unsigned integers of 1 to 8 bits."""

Packing = Literal["down", "across"]
"""How the 32-bit words of a transposed matrix hold codes: those of `down` hold consecutive inputs
of one output, those of `across` hold eight outputs of one input."""

NUMBERS: tuple[Number, ...] = get_args(Number)
PACKINGS: tuple[Packing, ...] = get_args(Packing)

# Positions in these tuples are passed to the core; a build that disagrees must not run.
if (NUMBERS, PACKINGS) != (_core.NUMBERS, _core.PACKINGS):
    raise ImportError(
        f"the C core has {_core.NUMBERS} and {_core.PACKINGS}, Python {NUMBERS} and {PACKINGS}"
    )

_ONE = np.ones((1, 1), np.float32)


@dataclass(frozen=True, eq=False)
class Scales:
    """The scale and the zero of each weight of some rows: w = (number - zero) * scale.

    scale:   float32 [i, j]
    zero:    float32 [i, j], or None if all weights have the zero `zero_of_all`
    rows, columns: the size of the rectangle of weights that share a scale
    first:   the place of the first row in its rectangle
    groups:  int32 [n_per_row], the j of each column, if j is not the column // columns
    """

    scale: F32
    zero: F32 | None = None
    zero_of_all: float = 0.0
    rows: int = 1 << 30
    columns: int = 1 << 30
    first: int = 0
    groups: I32 | None = None


def decode_rows(
    codes: U8, number: Number, n_per_row: int, scales: Scales, into: F32, bits: int = 8
) -> None:
    """Decode rows of numbers to weights, with one rounding a weight.

    codes: uint8 [n_rows, bytes of a row]; into: float32 [n_rows, n_per_row], C order, filled
    bits:  the width of BITS

    Raises ValueError for shapes that do not fit together, which is a bug in dynquant.
    """
    _core.decode_rows(
        isa_in_use(),
        NUMBERS.index(number),
        bits,
        codes,
        len(codes),
        n_per_row,
        scales.first,
        scales.rows,
        scales.columns,
        scales.scale.shape[1],
        scales.scale,
        scales.zero,
        scales.zero_of_all,
        scales.groups,
        into,
    )


def numbers(codes: U8, number: Number, n_per_row: int, bits: int = 8) -> F32:
    """Return rows of numbers without a scale, float32 [n_rows, n_per_row]."""
    found = np.empty((len(codes), n_per_row), np.float32)
    if found.size:
        decode_rows(codes, number, n_per_row, Scales(_ONE), found, bits)
    return found


def decode_transposed(
    words: U8,
    packing: Packing,
    bits: int,
    start: int,
    into: F32,
    *,
    scale: F32 | None = None,
    zero: F32 | None = None,
    groups: I32 | None = None,
) -> None:
    """Decode outputs of a transposed matrix, whose 32-bit words run along the outputs.

    words:  uint8 [n, 4 * width] for `down`, [n_per_row, width / 2] for `across`
    start:  the first output; into: float32 [n_rows, n_per_row], C order, filled
    scale, zero: float32 [n_groups, width]; groups: int32 [n_per_row], the group of each input; None
            for the codes as they are

    Raises ValueError for shapes that do not fit together, which is a bug in dynquant.
    """
    width = words.shape[1] // 4 * (1 if packing == "down" else 8)
    _core.decode_transposed(
        isa_in_use(),
        PACKINGS.index(packing),
        bits,
        words,
        width,
        start,
        into.shape[0],
        into.shape[1],
        scale,
        zero,
        groups,
        into,
    )


def mxfp4_blocks(codes: U8, scales: U8) -> U8:
    """Return blocks of MXFP4 for codes in order and E8M0 scales; only nibbles move.

    codes:   uint8 [n_blocks, 16], two codes to a byte, the first in the low half
    scales:  uint8 [n_blocks]
    returns: uint8 [n_blocks, 17], block_mxfp4 of ggml-common.h
    """
    blocks = np.empty((len(scales), 17), np.uint8)
    if len(scales):
        _core.mxfp4_of_codes(isa_in_use(), codes, scales, blocks)
    return blocks
