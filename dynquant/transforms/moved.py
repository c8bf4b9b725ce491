"""Rows of other tensors in another order or shape, of every type, blocks too."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod

import numpy as np

from dynquant.arrays import I64, U8
from dynquant.part_cache import Parts
from dynquant.quants import QuantType
from dynquant.tensors import TensorSource, n_rows, row_bytes

SLAB_BYTES = 1 << 20
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
        step = max(1, SLAB_BYTES // (n_columns * itemsize))
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
