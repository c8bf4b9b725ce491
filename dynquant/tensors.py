"""Lazy sources of weights: any range of rows is read on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.quants.table import ALL, QuantType
from dynquant.stored_files import StoredFile, stored_file

T = TypeVar("T")


class TensorSource(Protocol):
    """Rows of one tensor, read on demand, so that no whole tensor is ever in memory.

    The last dimension of the shape is `n_per_row`; the others together give the number of rows.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """As in numpy, slowest dimension first."""
        ...

    @property
    def stored(self) -> QuantType:
        """The type of the rows that `read` returns."""
        ...

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop, (stop - start) * row_bytes(source) bytes.

        Several threads call it at once.
        Raises CheckpointError with file and offset if the file cannot be read or ends early.
        """
        ...


@dataclass(frozen=True)
class Kept:
    """The blocks of a weight as they are on disk, for an output that keeps their type.

    blocks: their rows
    factor: F32 [n_matrices], a factor for each matrix; llama.cpp reads it from the tensor
            NAME.scale
    others: the same codes in blocks of other types, for recipes that name these
    """

    blocks: TensorSource
    factor: TensorSource
    others: tuple[TensorSource, ...] = ()

    def of_type(self, name: str) -> TensorSource | None:
        """Return the blocks of a type; None if there are none."""
        return next((b for b in (self.blocks, *self.others) if b.stored.name == name), None)


def n_rows(shape: tuple[int, ...]) -> int:
    """Return the number of rows of a shape: all its dimensions but the last."""
    return prod(shape[:-1])


def row_bytes(source: TensorSource) -> int:
    """Return the stored bytes of one row of a source; a single number is a row."""
    return source.stored.row_size(prod(source.shape[-1:]))


class ShardFile:
    """A file that many tensors read.

    file:    where its bytes are; a path is a file of this machine
    reached: the end of the furthest read, in bytes; updated after the read
    """

    def __init__(self, file: Path | StoredFile) -> None:
        self.file = stored_file(file)
        self.reached = 0

    @property
    def path(self) -> Path:
        """The place of the file on this machine, or the one that it would have."""
        return self.file.path

    def read(self, offset: int, into: U8) -> None:
        """Fill `into` with the bytes at `offset`; raise CheckpointError if that fails."""
        view = into.data.cast("B")
        self.file.read(offset, view)
        self.reached = max(self.reached, offset + len(view))

    def forget(self) -> None:
        """Free what is kept of the file on this machine."""
        self.file.forget()


@dataclass(frozen=True)
class Stored:
    """A tensor as it is stored in a file, row after row from `offset`."""

    file: ShardFile = field(repr=False)
    offset: int
    shape: tuple[int, ...]
    stored: QuantType

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop in one read."""
        n_bytes = (stop - start) * row_bytes(self)
        self.file.read(self.offset + start * row_bytes(self), into[:n_bytes])


@dataclass(frozen=True)
class Doubles:
    """Rows that a file stores in double precision; each number is rounded once, to F32.

    rows: the numbers as they are stored, F64; numbers beyond the range of F32 become infinite
    """

    rows: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the stored tensor."""
        return self.rows.shape

    @property
    def stored(self) -> QuantType:
        """F32, as rounded."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        found = np.empty((stop - start) * row_bytes(self.rows), np.uint8)
        self.rows.read(start, stop, found)
        with np.errstate(over="ignore"):
            into[:] = found.view("<f8").astype("<f4").view(np.uint8)


def f32_bytes(weights: F32) -> U8:
    """Return weights in C order as the bytes of a source that is stored in F32, uint8 [n_bytes]."""
    return np.ascontiguousarray(weights, "<f4").view(np.uint8).reshape(-1)


@dataclass(frozen=True, eq=False)
class Computed:
    """A small tensor that is computed and not stored, such as the factors of a rope scaling."""

    values: F32

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return self.values.shape

    @property
    def stored(self) -> QuantType:
        """F32, as computed."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        rows = self.values.reshape(-1, self.values.shape[-1])[start:stop]
        into[:] = f32_bytes(rows)


def parts_of(source: TensorSource, kind: type[T], *, alike: bool = False) -> Iterator[T]:
    """Yield all components of a source that are of one kind, such as its files, in order.

    alike: look only at the first of several components in a list: the experts of a stack are alike
    """
    left: list[object] = [source]
    while left:
        part = left.pop()
        if isinstance(part, kind):
            yield part
        elif isinstance(part, (list, tuple)):
            several = cast(Sequence[object], part)
            left += several[:1] if alike else reversed(several)
        else:
            left += [getattr(part, name) for name in _members(type(part))]


@cache
def _members(kind: type) -> tuple[str, ...]:
    """Return the fields of a kind of source, the last first; no fields for other types."""
    if kind is QuantType or not is_dataclass(kind):
        return ()
    return tuple(f.name for f in reversed(fields(kind)))
