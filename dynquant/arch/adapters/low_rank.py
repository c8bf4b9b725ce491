"""Changes of low rank as tensors: their sum with a weight, and their way through transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from dynquant.arch.base import Via
from dynquant.arrays import F32, I64, U8
from dynquant.errors import AdapterError
from dynquant.part_cache import Parts
from dynquant.quants.table import ALL, QuantType
from dynquant.tensors import Computed, TensorSource, f32_bytes, n_rows
from dynquant.transforms import (
    Columns,
    Elementwise,
    InF32,
    Reshaped,
    Rows,
    ScaledInputs,
    ScaledRows,
    Stack,
    Transposed,
    read_weights,
    scaled,
    stack,
    transposed,
)

_TILE = 1 << 16
"""Weights whose sums are computed together: they and one product fit into a core's cache."""


@dataclass(frozen=True)
class LowRank:
    """A change of a weight: factor * left @ right, for one matrix or a stack of matrices.

    left:  [..., rows of the weight, rank]
    right: [..., rank, columns of the weight]
    """

    left: TensorSource
    right: TensorSource
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def rank(self) -> int:
        """The rank of each matrix."""
        return self.left.shape[-1]

    @property
    def is_matrix(self) -> bool:
        """Whether it changes one matrix, not a stack."""
        return len(self.left.shape) == 2


@dataclass(frozen=True, eq=False)
class Merged(InF32):
    """A matrix with a change of low rank added, in F32.

    The sum over the rank has one order, and no product is fused with a sum: the bytes are the same
    for any range of rows and on any machine.

    where: the adapter and its module, which begin messages
    """

    source: TensorSource
    change: LowRank
    where: str
    _right: Parts[F32] = field(default_factory=lambda: Parts[F32](), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.source.shape != self.change.shape or not self.change.is_matrix:
            raise ValueError(f"{self.change.shape} added to {self.source.shape}")

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop.

        Raises AdapterError if the change makes a number infinite.
        """
        weights = read_weights(self.source, start, stop)
        left = read_weights(self.change.left, start, stop)
        n_bytes = 4 * prod(self.change.right.shape)
        with self._right.use(0, n_bytes, self._whole_right) as right:
            add_product(weights, left, right, np.float32(self.change.factor))
        if not _is_finite(weights) and _is_finite(read_weights(self.source, start, stop)):
            raise AdapterError(
                f"{self.where}: merged weights in rows {start} to {stop - 1} are beyond the range"
                " of F32; the adapter is damaged or its training diverged, use another copy of it"
            )
        into[:] = f32_bytes(weights)

    def _whole_right(self, _: int) -> F32:
        return read_weights(self.change.right, 0, self.change.rank)


def _is_finite(weights: F32) -> bool:
    # The largest of several numbers is NaN if one of them is.
    return bool(np.isfinite(weights.max(initial=0)) and np.isfinite(weights.min(initial=0)))


def add_product(weights: F32, left: F32, right: F32, factor: np.float32) -> None:
    """Add factor * left @ right to weights, in place.

    weights: float32 [n, columns]; left: float32 [n, rank]; right: float32 [rank, columns]

    Each element is the sum over the rank in order, then times the factor, each step rounded to
    float32. BLAS would be faster, but its order of sums depends on the machine and the shape.
    """
    # Numbers that are not finite are reported by the callers.
    with np.errstate(over="ignore", invalid="ignore"):
        _add(weights, left, right, factor)


def _add(weights: F32, left: F32, right: F32, factor: np.float32) -> None:
    n, n_columns = weights.shape
    width = min(n_columns, _TILE)
    height = max(1, _TILE // width)
    for top in range(0, n, height):
        part = left[top : top + height]
        for first in range(0, n_columns, width):
            columns = right[:, first : first + width]
            total = part[:, :1] * columns[:1]
            product = np.empty_like(total)
            for k in range(1, len(columns)):
                np.multiply(part[:, k, None], columns[k], out=product)
                np.add(total, product, out=total)
            np.multiply(total, factor, out=total)
            weights[top : top + height, first : first + width] += total


@dataclass(frozen=True)
class Marker:
    """Stands for a changed weight while a family's transform is applied; it has no rows."""

    change: LowRank

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.change.shape

    @property
    def stored(self) -> QuantType:
        """F32."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Raise AssertionError: only the transforms around a marker are of interest."""
        del start, stop, into
        raise AssertionError("a marker has no rows")


def zeros(shape: tuple[int, ...]) -> TensorSource:
    """Return a factor of an expert that an adapter does not change; it takes no memory."""
    return Computed(np.broadcast_to(np.float32(0), shape))


def stacked(changes: list[LowRank]) -> LowRank:
    """Return the changes of experts as one; they have one rank and one factor."""
    return LowRank(
        stack([c.left for c in changes]), stack([c.right for c in changes]), changes[0].factor
    )


def times(change: LowRank, number: float) -> LowRank:
    """Return a change times a number, which goes into the left factor."""
    return change if np.float32(number) == 1 else replace(change, left=scaled(change.left, number))


def through(via: Via | None, change: LowRank) -> LowRank:
    """Return the change of a transformed weight, as two factors.

    Transforms of rows act on the left factor, those of columns on the right one; transposing
    exchanges them. Raises AdapterError with the name of a transform that cannot be divided.
    """
    if via is None:
        return change
    try:
        return _of(via(Marker(change)))
    except (ValueError, AssertionError) as e:
        raise AdapterError(f"its rows are transformed as a whole ({e})") from e


def _of(source: TensorSource) -> LowRank:
    """Return the change behind the transforms of a marker."""
    if isinstance(source, Marker):
        return source.change
    if isinstance(source, Stack):
        return stacked([_of(part) for part in source.parts])
    if not isinstance(
        source, Rows | Transposed | Columns | Elementwise | ScaledInputs | ScaledRows | Reshaped
    ):
        raise AdapterError(f"its transform ({type(source).__name__}) does not act on two factors")
    inner = _of(source.source)
    if isinstance(source, Rows):
        return _with_rows(inner, source)
    if isinstance(source, Transposed):
        return LowRank(transposed(inner.right), transposed(inner.left), inner.factor)
    if isinstance(source, Columns):
        return replace(inner, right=Columns(inner.right, source.order, source.each))
    if isinstance(source, ScaledInputs):
        return times(inner, source.factor)
    if isinstance(source, ScaledRows) and inner.is_matrix:
        return replace(inner, left=ScaledRows(inner.left, source.factors))
    if isinstance(source, Elementwise):
        return times(inner, _factor_of(source.function))
    if isinstance(source, Reshaped) and source.shape == inner.shape:
        return inner
    raise AdapterError(f"its transform ({type(source).__name__}) gives another shape")


def _with_rows(inner: LowRank, moved: Rows) -> LowRank:
    """Return a change with its rows in another order; none may move to another matrix."""
    outer, n = inner.shape[:-2], moved.shape[-2]
    if moved.shape[:-2] != outer:
        raise AdapterError("its rows are divided into several matrices")
    if outer:
        rows = np.arange(n_rows(moved.shape), dtype=np.int64)
        if (moved.order(rows) // inner.shape[-2] != rows // n).any():
            raise AdapterError("its rows move between the matrices of a stack")
    order: Callable[[I64], I64] = moved.order
    return replace(inner, left=Rows(inner.left, (*moved.shape[:-1], inner.rank), order))


def _factor_of(function: Callable[[F32], F32]) -> float:
    """Return the number by which a function multiplies; AdapterError if it does something else."""
    row = np.array([0, 1, -1, 2, 0.375, -1024, 3e-5], np.float32)
    tried = np.stack([row, row * 4])  # a function that normalizes gives other factors
    found = function(tried.copy())
    if not np.array_equal(found, tried * found[0, 1]):
        raise AdapterError("its weights are changed by a function that is not linear")
    return float(found[0, 1])
