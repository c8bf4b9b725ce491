"""Weights that lie on the grid of a quant type, by the definition of the types; numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from packers import E2M1

from dynquant.arrays import F32

Rng = np.random.Generator


def bf16_rounded(x: F32) -> F32:
    """Return numbers rounded to BF16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def f16_rounded(x: F32) -> F32:
    """Return numbers rounded to F16."""
    return x.astype(np.float16).astype(np.float32)


ROUND: dict[str, Callable[[F32], F32]] = {
    "BF16": bf16_rounded,
    "F16": f16_rounded,
    "F32": lambda x: x.astype(np.float32),
}


def scales(rng: Rng, n_rows: int, n: int, dtype: str) -> F32:
    """Return scales of a number format, [n_rows, n]."""
    return ROUND[dtype](np.exp(rng.normal(-5.5, 0.6, (n_rows, n))).astype(np.float32))


def integers(
    rng: Rng, shape: tuple[int, int], lo: int, hi: int, group: int, scale: str = "BF16"
) -> F32:
    """Normal weights as lo..hi, the largest of a group as the outermost level."""
    n, n_per_row = shape
    x = rng.standard_normal((n, n_per_row // group, group))
    codes = np.clip(np.rint(x / np.abs(x).max(-1, keepdims=True) * max(-lo, hi)), lo, hi)
    factor = scales(rng, n, n_per_row // group, scale)
    return (codes.reshape(shape) * factor.repeat(group, 1)).astype(np.float32)


def ternary(rng: Rng, shape: tuple[int, int], group: int, scale: str = "BF16") -> F32:
    """Weights -d, 0 and d, with one d for each group."""
    factor = scales(rng, shape[0], shape[1] // group, scale)
    return (rng.integers(-1, 2, shape) * factor.repeat(group, 1)).astype(np.float32)


def signs(rng: Rng, shape: tuple[int, int], group: int, scale: str = "BF16") -> F32:
    """Weights -d and d, with one d for each group."""
    factor = scales(rng, shape[0], shape[1] // group, scale)
    return ((2 * rng.integers(0, 2, shape) - 1) * factor.repeat(group, 1)).astype(np.float32)


def fp4(rng: Rng, shape: tuple[int, int]) -> F32:
    """Levels of FP4 with a power of two for 32 weights."""
    factor = np.exp2(rng.integers(-14, 2, (shape[0], shape[1] // 32)).astype(np.float32))
    return (E2M1[rng.integers(0, 16, shape)] * factor.repeat(32, 1)).astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """Weights of a model that was trained for a type.

    type:   the type with the fewest bits that reproduces them
    stored: the type that the checkpoint has
    scale:  the format of the scales
    """

    type: str
    stored: str
    scale: str
    make: Callable[[Rng, tuple[int, int]], F32]

    def weights(self, seed: int, shape: tuple[int, int]) -> F32:
        """Return the weights as they are stored."""
        return ROUND[self.stored](self.make(np.random.default_rng(seed), shape))


def _int4(lo: int, hi: int, scale: str) -> Callable[[Rng, tuple[int, int]], F32]:
    return lambda rng, shape: integers(rng, shape, lo, hi, 32, scale)


GRIDS: dict[str, Grid] = {
    **{
        f"INT4 {lo}..{hi}, groups of 32, {scale} scales, {stored}": Grid(
            "Q4_0", stored, scale, _int4(lo, hi, scale)
        )
        for lo, hi in ((-8, 7), (-7, 7), (-5, 5))
        for scale, stored in (("BF16", "BF16"), ("F16", "BF16"), ("BF16", "F32"), ("F16", "F16"))
    },
    "INT4 -7..7, groups of 128, BF16 scales, BF16": Grid(
        "Q4_0", "BF16", "BF16", lambda rng, shape: integers(rng, shape, -7, 7, 128)
    ),
    "ternary, one scale a row, BF16": Grid(
        "TQ2_0", "BF16", "BF16", lambda rng, shape: ternary(rng, shape, shape[1])
    ),
    "ternary, groups of 256, F16": Grid(
        "TQ2_0", "F16", "F16", lambda rng, shape: ternary(rng, shape, 256, "F16")
    ),
    "ternary, groups of 128, F16": Grid(
        "Q2_0", "F16", "F16", lambda rng, shape: ternary(rng, shape, 128, "F16")
    ),
    "signs, groups of 128, F16": Grid(
        "Q1_0", "F16", "F16", lambda rng, shape: signs(rng, shape, 128, "F16")
    ),
    "MXFP4 as BF16": Grid("MXFP4", "BF16", "E8M0", fp4),
}
"""Checkpoints whose weights the type gives exactly."""
