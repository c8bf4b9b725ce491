"""Lazy transforms of rows (stack, select, transpose); no whole tensor is ever in memory.

Each transform is a TensorSource over other sources and reads from them only what the requested
rows need. Transforms that move rows accept every type, blocks too; those that compute return F32.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod

import numpy as np

from dynquant.arrays import F32, I64, U8
from dynquant.errors import CheckpointError
from dynquant.part_cache import Parts
from dynquant.quants import ALL, QuantType, decode
from dynquant.quants.table import KEPT
from dynquant.tensors import TensorSource, f32_bytes, n_rows, row_bytes

_SLAB_BYTES = 1 << 20
"""Bytes of a matrix that are read and transposed at a time. Slabs fit into a core's cache: a matrix
of [2880, 5760] BF16 takes a fifth of the time that it takes as a whole, and half of the memory."""

_DENSE = 3
"""Rows are dense if they span at most this many times their number. One read of the whole span is
then cheaper than several reads."""


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape and type as one tensor with one more dimension: experts of a layer."""

    parts: tuple[TensorSource, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """[parts, *shape of each]."""
        return (len(self.parts), *self.parts[0].shape)

    @property
    def stored(self) -> QuantType:
        """The type of all parts."""
        return self.parts[0].stored

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop, from one part or several."""
        n, size = n_rows(self.parts[0].shape), row_bytes(self)
        for part in range(start // n, -(-stop // n)):
            first, last = max(start, part * n), min(stop, (part + 1) * n)
            place = into[(first - start) * size : (last - start) * size]
            self.parts[part].read(first - part * n, last - part * n, place)


@dataclass(frozen=True)
class Joined:
    """Matrices of one width and type as one matrix: the rows of each after those of the last."""

    parts: tuple[TensorSource, ...]

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The number of rows up to the end of each part."""
        return tuple(accumulate(part.shape[0] for part in self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows of all parts, columns]."""
        return (self._ends[-1], *self.parts[0].shape[1:])

    @property
    def stored(self) -> QuantType:
        """The type of all parts."""
        return self.parts[0].stored

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop, from one part or several."""
        size, done = row_bytes(self), start
        while done < stop:
            index = bisect_right(self._ends, done)
            begin = self._ends[index] - self.parts[index].shape[0]
            last = min(stop, self._ends[index])
            place = into[(done - start) * size : (last - start) * size]
            self.parts[index].read(done - begin, last - begin, place)
            done = last


@dataclass(frozen=True)
class Reshaped:
    """The same weights in the same order with another shape; only rows of floats change length."""

    source: TensorSource
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        kept = self.shape[-1:] == self.source.shape[-1:] or self.source.stored.is_float
        if prod(self.shape) != prod(self.source.shape) or not kept:
            raise ValueError(f"{self.source.shape} as {self.shape}")

    @property
    def stored(self) -> QuantType:
        """The type of the source."""
        return self.source.stored

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        ours, theirs = row_bytes(self), row_bytes(self.source)
        first, last = start * ours // theirs, -(-stop * ours // theirs)
        if (first * theirs, last * theirs) == (start * ours, stop * ours):
            self.source.read(first, last, into)
            return
        whole = np.empty((last - first) * theirs, np.uint8)
        self.source.read(first, last, whole)
        into[:] = whole[start * ours - first * theirs : stop * ours - first * theirs]


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor in any order: row i is the source's row order(i).

    order: from int64 [n] rows of this tensor to int64 [n] rows of the source
    """

    source: TensorSource
    shape: tuple[int, ...]
    order: Callable[[I64], I64]

    @property
    def stored(self) -> QuantType:
        """The type of the source."""
        return self.source.stored

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop: one read if they are dense, else one for each run."""
        size = row_bytes(self)
        rows = into.reshape(stop - start, size)
        wanted = self.order(np.arange(start, stop, dtype=np.int64))
        by_place = np.argsort(wanted, kind="stable")
        apart = _DENSE * len(wanted) if wanted.max() - wanted.min() < _DENSE * len(wanted) else 1
        runs = np.split(by_place, np.flatnonzero(np.diff(wanted[by_place]) > apart) + 1)
        for run in runs:
            first, last = int(wanted[run[0]]), int(wanted[run[-1]])
            found = np.empty((last + 1 - first, size), np.uint8)
            self.source.read(first, last + 1, found.reshape(-1))
            rows[run] = found[wanted[run] - first]


@dataclass(frozen=True)
class ZeroRows:
    """A matrix with rows of zeros after its last: zero bytes, which are zeros in every type.

    n: number of rows, with the source's own
    """

    source: TensorSource
    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, columns]."""
        return (self.n, *self.source.shape[1:])

    @property
    def stored(self) -> QuantType:
        """The type of the source."""
        return self.source.stored

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        last = min(stop, self.source.shape[0])
        n_bytes = max(0, last - start) * row_bytes(self)
        if n_bytes:
            self.source.read(start, last, into[:n_bytes])
        into[n_bytes:] = 0


@dataclass(frozen=True, eq=False)
class Transposed:
    """Each matrix of a tensor transposed; whole matrices, shared by the threads that read rows."""

    source: TensorSource
    _matrices: Parts[U8] = field(default_factory=lambda: Parts[U8](), init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.source.stored.is_float:
            raise ValueError(f"rows of {self.source.stored.name} cannot be transposed")

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's with its last two dimensions exchanged."""
        *outer, rows, columns = self.source.shape
        return (*outer, columns, rows)

    @property
    def stored(self) -> QuantType:
        """The type of the source."""
        return self.source.stored

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop; reads the whole matrices that hold them."""
        n, size = self.shape[-2], row_bytes(self)
        rows = into.reshape(stop - start, size)
        for index in range(start // n, -(-stop // n)):
            first, last = max(start, index * n), min(stop, (index + 1) * n)
            with self._matrices.use(index, n * size, self._transposed) as matrix:
                rows[first - start : last - start] = matrix[first - index * n : last - index * n]

    def _transposed(self, index: int) -> U8:
        """Return a transposed matrix as bytes, uint8 [its columns, its rows * itemsize]."""
        n_rows, n_columns = self.source.shape[-2:]
        itemsize = self.stored.type_size
        matrix = np.empty((n_columns, n_rows), f"u{itemsize}")
        step = max(1, _SLAB_BYTES // (n_columns * itemsize))
        slab = np.empty((min(step, n_rows), n_columns), matrix.dtype)
        for first in range(0, n_rows, step):
            last = min(first + step, n_rows)
            found = slab[: last - first]
            at = index * n_rows
            self.source.read(at + first, at + last, found.view(np.uint8).reshape(-1))
            matrix[:, first:last] = found.T
        return matrix.view(np.uint8)


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of each row in any order, in pieces of several: piece i is the source's order[i].

    order: int64 [pieces of a row]; each: weights of a piece, whole blocks of the source's type
    """

    source: TensorSource
    order: I64
    each: int

    def __post_init__(self) -> None:
        in_row = len(self.order) * self.each
        if in_row != self.source.shape[-1] or self.each % self.source.stored.block_size:
            raise ValueError(f"{len(self.order)} pieces of {self.each} in {self.source.shape}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the source."""
        return self.source.shape

    @property
    def stored(self) -> QuantType:
        """The type of the source."""
        return self.source.stored

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        rows = np.empty((stop - start) * row_bytes(self), np.uint8)
        self.source.read(start, stop, rows)
        pieces = rows.reshape(stop - start, len(self.order), -1)
        into.reshape(pieces.shape)[:] = pieces[:, self.order]


class InF32:
    """Rows computed from those of a source of the same shape, in F32."""

    source: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the source."""
        return self.source.shape

    @property
    def stored(self) -> QuantType:
        """F32, as computed."""
        return ALL["F32"]


@dataclass(frozen=True)
class Elementwise(InF32):
    """A function of each weight, computed in F32."""

    source: TensorSource
    function: Callable[[F32], F32]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        values = self.function(read_weights(self.source, start, stop))
        into[:] = f32_bytes(values)


@dataclass(frozen=True)
class ScaledInputs(InF32):
    """A matrix times a number by which the checkpoint's model multiplies its inputs instead."""

    source: TensorSource
    factor: float

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        into[:] = f32_bytes(read_weights(self.source, start, stop) * np.float32(self.factor))


@dataclass(frozen=True, eq=False)
class UnitColumns(InF32):
    """A matrix with each column divided by its norm plus a small number, computed in F32.

    The norms are computed once, in one pass over the matrix, and are shared by the threads that
    read rows.
    """

    source: TensorSource
    epsilon: float
    _norms: Parts[F32] = field(default_factory=lambda: Parts[F32](), init=False, repr=False)

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        with self._norms.use(0, 4 * self.shape[-1], self._computed) as norms:
            values = read_weights(self.source, start, stop) / norms
        into[:] = f32_bytes(values)

    def _computed(self, _: int) -> F32:
        """Return the divisors of the columns, float32 [n_per_row]."""
        # In float64 and in one order, so that every machine rounds to the same float32.
        total = np.zeros(self.shape[-1], np.float64)
        step = max(1, _SLAB_BYTES // (4 * self.shape[-1]))
        for start in range(0, self.shape[0], step):
            rows = read_weights(self.source, start, min(start + step, self.shape[0]))
            for row in rows.astype(np.float64):
                total += row * row
        return np.sqrt(total).astype(np.float32) + np.float32(self.epsilon)


@dataclass(frozen=True)
class Product:
    """The product of two tensors with the same number of weights, in F32."""

    first: TensorSource
    second: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first."""
        return self.first.shape

    @property
    def stored(self) -> QuantType:
        """F32, as computed."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        values = read_weights(self.first, start, stop) * read_weights(
            Reshaped(self.second, self.first.shape), start, stop
        )
        into[:] = f32_bytes(values)


@dataclass(frozen=True, eq=False)
class ScaledRows(InF32):
    """Each row times a number, in F32.

    factors: float32 [rows]
    """

    source: TensorSource
    factors: F32

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        values = read_weights(self.source, start, stop) * self.factors[start:stop, None]
        into[:] = f32_bytes(values)


def read_weights(source: TensorSource, start: int, stop: int) -> F32:
    """Return rows start..stop of a source, float32 [stop - start, n_per_row]."""
    rows = np.empty((stop - start, row_bytes(source)), np.uint8)
    source.read(start, stop, rows.reshape(-1))
    return decode(rows, source.stored, prod(source.shape[-1:]))


@dataclass(frozen=True)
class AsI32:
    """Integers of 64 bits as integers of 32 bits; none may be larger."""

    source: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the source."""
        return self.source.shape

    @property
    def stored(self) -> QuantType:
        """I32."""
        return KEPT["I32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop; raise CheckpointError for a number out of range."""
        rows = np.empty((stop - start) * row_bytes(self.source), np.uint8)
        self.source.read(start, stop, rows)
        found = rows.view("<i8")
        if found.size and not (found.min() >= -(2**31) and found.max() < 2**31):
            raise CheckpointError(
                f"rows {start} to {stop - 1} of a table have numbers beyond 32 bits; download the"
                " checkpoint again"
            )
        into[:] = found.astype("<i4").view(np.uint8)


# ---- functions for the declarations of families --------------------------------------------------


def stack(parts: Sequence[TensorSource]) -> TensorSource:
    """Return tensors of one shape as one tensor; F32 if their types differ."""
    return Stack(_of_one_type(parts))


def joined(parts: Sequence[TensorSource]) -> TensorSource:
    """Return matrices of one width as one matrix, rows after rows; F32 if their types differ."""
    return Joined(_of_one_type(parts))


def _of_one_type(parts: Sequence[TensorSource]) -> tuple[TensorSource, ...]:
    if len({part.stored for part in parts}) > 1:
        return tuple(map(as_f32, parts))
    return tuple(parts)


def interleaved_heads(
    source: TensorSource, n_head: int, n_rotated: int | None = None
) -> TensorSource:
    """Return Q or K in the order of interleaved rotary pairs, from the half-split order of HF.

    Hugging Face stores the first halves of a head's rotary pairs before the second halves.
    llama.cpp's Llama graph needs them pair by pair: row 2j+k of a head is row k*(head_dim/2)+j of
    the stored head. A bias is one row; its elements are permuted in the same way.

    n_rotated: rotated rows of a head, which are its first; the others stay. None for all
    """
    head_dim = source.shape[0] // n_head
    rotated = head_dim if n_rotated is None else n_rotated

    def order(row: I64) -> I64:
        head, within = np.divmod(row, head_dim)
        pair, half = np.divmod(within, 2)
        moved = np.where(within < rotated, half * (rotated // 2) + pair, within)
        return head * head_dim + moved

    return reordered(source, order)


def half_split_heads(source: TensorSource, n_head: int, n_rotated: int) -> TensorSource:
    """Return Q or K in the half-split order, from that of interleaved rotary pairs.

    n_rotated: rotated rows of a head, which are its first; the others stay
    """
    n_per_head = source.shape[0] // n_head

    def order(rows: I64) -> I64:
        head, row = np.divmod(rows, n_per_head)
        half = n_rotated // 2
        pair = np.where(row < half, 2 * row, 2 * (row - half) + 1)
        return head * n_per_head + np.where(row < n_rotated, pair, row)

    return reordered(source, order)


def reordered(source: TensorSource, order: Callable[[I64], I64]) -> TensorSource:
    """Return a matrix with its rows, or a vector with its elements, in another order."""
    if len(source.shape) > 1:
        return Rows(source, source.shape, order)
    elements = Reshaped(source, (*source.shape, 1))
    return Reshaped(Rows(elements, elements.shape, order), source.shape)


def rows_between(source: TensorSource, start: int, stop: int) -> TensorSource:
    """Return rows start..stop of a matrix, or elements start..stop of a vector."""
    if len(source.shape) > 1:
        return rows_of_each(source, start, stop)
    return elements_of_each(source, start, stop)


def rows_of_each(
    source: TensorSource, start: int, stop: int, step: int = 1, each: int | None = None
) -> TensorSource:
    """Return rows start..stop of each matrix of a tensor, with a step.

    Example: the gate and up projections of experts that are stored as one tensor.

    each: splits a plain matrix: every `each` rows become one matrix of the result (the heads of a
          projection); None takes the matrices from the shape
    """
    *outer, rows = source.shape[:-1] if each is None else (source.shape[0] // each, each)
    kept = len(range(start, stop, step))
    n_per_row = source.shape[-1]

    def order(row: I64) -> I64:
        matrix, within = np.divmod(row, kept)
        return matrix * rows + start + within * step

    return Rows(source, (*outer, kept, n_per_row), order)


def first_half_of_each(source: TensorSource) -> TensorSource:
    """Return the first half of the rows of each matrix: the gates of experts, before their ups."""
    return rows_of_each(source, 0, source.shape[-2] // 2)


def second_half_of_each(source: TensorSource) -> TensorSource:
    """Return the second half of the rows of each matrix."""
    return rows_of_each(source, source.shape[-2] // 2, source.shape[-2])


def elements_of_each(source: TensorSource, start: int, stop: int, step: int = 1) -> TensorSource:
    """Return elements start..stop of each row, with a step: `rows_of_each` for biases."""
    columns = Reshaped(source, (*source.shape, 1))
    picked = rows_of_each(columns, start, stop, step)
    return Reshaped(picked, picked.shape[:-1])


def tiled_heads(source: TensorSource, n_groups: int, each: int, first: int = 0) -> TensorSource:
    """Return rows of heads in tiled order: the first head of each group, then the second of each.

    The source has the heads of a group together. A vector's elements are reordered like rows.

    each: rows of a head; first: rows before the heads, which stay
    """
    n_in_group = (source.shape[0] - first) // (n_groups * each)

    def order(rows: I64) -> I64:
        head, within = np.divmod(rows - first, each)
        number, group = np.divmod(head, n_groups)
        moved = first + (group * n_in_group + number) * each + within
        return np.where(rows < first, rows, moved)

    return reordered(source, order)


def tiled_columns(source: TensorSource, n_groups: int, each: int) -> TensorSource:
    """Return the columns of heads in tiled order, as `tiled_heads` does for rows.

    F32 if a block of the source spans two heads.
    """
    n_heads = source.shape[-1] // each
    number, group = np.divmod(np.arange(n_heads, dtype=np.int64), n_groups)
    whole = each % source.stored.block_size == 0
    pieces = source if whole else as_f32(source)
    return Columns(pieces, group * (n_heads // n_groups) + number, each)


def transposed(source: TensorSource) -> TensorSource:
    """Return a tensor with each matrix transposed; F32 if its rows are blocks."""
    whole = source if source.stored.is_float else as_f32(source)
    return Transposed(whole)


def as_f32(source: TensorSource) -> TensorSource:
    """Return a tensor decoded to F32."""
    return Elementwise(source, lambda x: x)


def plus_one(source: TensorSource) -> TensorSource:
    """Return the factors of a norm; the checkpoint stores them minus one."""
    return Elementwise(source, lambda x: x + np.float32(1))


def as_i32(source: TensorSource) -> TensorSource:
    """Return a table of integers with 32 bits each."""
    return AsI32(source) if source.stored == KEPT["I64"] else source


def squeezed(source: TensorSource, dimension: int) -> TensorSource:
    """Return a tensor without one of its dimensions, which must be 1."""
    shape = source.shape
    if shape[dimension] != 1:
        raise ValueError(f"dimension {dimension} of {shape} is not 1")
    return Reshaped(source, (*shape[:dimension], *shape[dimension + 1 :]))


def depthwise_kernels(source: TensorSource) -> TensorSource:
    """Return the kernels [channels, 1, kernel] of a depthwise convolution as a matrix."""
    return squeezed(source, dimension=1)


def with_zero_rows(source: TensorSource, n: int) -> TensorSource:
    """Return a matrix or vector of n rows or numbers: zeros after those of the source."""
    if len(source.shape) > 1:
        return ZeroRows(source, n)
    return Reshaped(ZeroRows(column(source), n), (n,))


def column(source: TensorSource) -> TensorSource:
    """Return a vector as a matrix of one column."""
    return Reshaped(source, (*source.shape, 1))


def in_groups(source: TensorSource, n: int) -> TensorSource:
    """Return a vector as a matrix with a row for each of n groups; F32 if stored in blocks."""
    whole = source if source.stored.is_float else as_f32(source)
    return Reshaped(whole, (n, source.shape[0] // n))


def scaled(source: TensorSource, factor: float) -> TensorSource:
    """Return a tensor times a number, which llama.cpp's graph does not apply."""
    return Elementwise(source, lambda x: x * np.float32(factor))


def parts_of_groups(
    source: TensorSource, n_groups: int, parts: Sequence[tuple[int, int]]
) -> TensorSource:
    """Return some rows of each group of rows: the first part of all groups, then the next part.

    A vector's elements are taken like rows.

    parts: start and end of each part within a group, in the order of the result
    """
    each = source.shape[0] // n_groups
    groups = np.arange(n_groups, dtype=np.int64)[:, None] * each
    rows = np.concatenate([(groups + np.arange(*part)).reshape(-1) for part in parts])

    def order(row: I64) -> I64:
        return rows[row]

    if len(source.shape) == 1:
        elements = Reshaped(source, (*source.shape, 1))
        return Reshaped(Rows(elements, (len(rows), 1), order), (len(rows),))
    return Rows(source, (len(rows), *source.shape[1:]), order)


def negated_exp(source: TensorSource) -> TensorSource:
    """Return -exp(x): the decay rate of a state; the checkpoint stores its logarithm."""
    # In float64, so that every machine rounds to the same float32.
    return Elementwise(source, lambda x: -np.exp(x.astype(np.float64)).astype(np.float32))


def softplus(source: TensorSource) -> TensorSource:
    """Return log(1 + exp(x)): a positive factor; the checkpoint stores x."""
    # In float64, so that every machine rounds to the same float32.
    return Elementwise(
        source, lambda x: np.logaddexp(np.float64(0), x.astype(np.float64)).astype(np.float32)
    )


def padded(source: TensorSource, n_rows: int) -> TensorSource:
    """Return a matrix with copies of its first row after the last one, up to this many rows."""
    stored = source.shape[0]

    def order(row: I64) -> I64:
        return np.where(row < stored, row, 0)

    return Rows(source, (n_rows, *source.shape[1:]), order)
