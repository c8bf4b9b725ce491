"""Weights that are stored as several tensors, and the faults of such groups of tensors."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from dynquant.arrays import F32, I32, U8
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import CheckpointError
from dynquant.name_lists import grouped
from dynquant.quants.codec import decode
from dynquant.quants.stored import Number, numbers
from dynquant.quants.table import FLOATS
from dynquant.tensors import Kept, TensorSource


class Weight(Protocol):
    """A weight: one stored tensor, or several that together form it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in numpy, slowest dimension first."""
        ...

    def source(self) -> TensorSource:
        """Return its rows; raise CheckpointError for a dtype that GGUF does not have."""
        ...


@dataclass(frozen=True)
class Packed:
    """A quantized weight: its rows, and the names of the stored tensors that form it.

    kept: its blocks if they have a separate factor; None otherwise
    """

    rows: TensorSource
    parts: tuple[str, ...]
    kept: Kept | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, not of the stored tensors."""
        return self.rows.shape

    def source(self) -> TensorSource:
        """Return the rows."""
        return self.rows


@dataclass
class Found:
    """The quantized weights found in a checkpoint.

    weights: by name; consumed: names of the stored tensors that form them
    faults:  messages, with the names to which they apply
    """

    weights: dict[str, Packed] = field(default_factory=dict[str, Packed])
    consumed: set[str] = field(default_factory=set[str])
    faults: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def add(
        self, name: str, rows: TensorSource, parts: Iterable[str], kept: Kept | None = None
    ) -> None:
        """Record a weight and its parts."""
        self.weights[name] = Packed(rows, tuple(parts), kept)
        self.consumed.update(self.weights[name].parts)

    def fault(self, name: str, text: str, parts: Iterable[str] = ()) -> None:
        """Record a fault of a weight; its parts are not reported again."""
        self.faults.setdefault(text, []).append(name)
        self.consumed.update((name, *parts))

    def messages(self, folder: Path) -> Iterator[str]:
        """Yield a message for each fault, with the names to which it applies."""
        for text, names in self.faults.items():
            yield from (f"{folder}: {name} {text}" for name in grouped(names))


def missing_parts(
    suffixes: Iterable[str], tensors: Mapping[str, StoredTensor], base: str
) -> str | None:
    """Return a message with the suffixes of the names of missing parts; None if none is missing."""
    missing = [suffix for suffix in suffixes if base + suffix not in tensors]
    if not missing:
        return None
    parts = " and ".join(f"*{suffix}" for suffix in missing)
    verb = "is" if len(missing) == 1 else "are"
    return f"cannot be read without {parts}, which {verb} missing; download it again"


WIDENED: dict[str, Number] = {"F8_E4M3": "E4M3", "F8_E5M2": "E5M2", "F8_E8M0": "E8M0", "I8": "I8"}
"""The number formats of dtypes of eight bits."""


def read_bytes(tensor: StoredTensor, n_rows: int, first: int, last: int) -> U8:
    """Return rows first..last of a tensor seen as n_rows rows, uint8 [last - first, bytes]."""
    size = tensor.n_bytes // n_rows
    found = np.empty((last - first, size), np.uint8)
    tensor.file.read(tensor.offset + first * size, found.reshape(-1))
    return found


@dataclass(frozen=True)
class Grid:
    """Scales or zeros of a weight, [n_rows, n_columns] over all its matrices.

    e8m0: U8 is an exponent of two and not an integer
    """

    tensor: StoredTensor
    n_rows: int
    n_columns: int
    e8m0: bool = False

    def read(self, first: int, last: int) -> F32:
        """Return rows first..last, float32 [last - first, n_columns]."""
        found = read_bytes(self.tensor, self.n_rows, first, last)
        return widened(found, self.tensor.dtype, self.n_columns, e8m0=self.e8m0)


@contextmanager
def float_rows(into: U8, n_per_row: int) -> Generator[F32, None, None]:
    """Give a buffer as rows to fill, float32 [n_rows, n_per_row]; aligned for the C core."""
    rows = into.view(np.float32).reshape(-1, n_per_row)
    if rows.flags.aligned:
        yield rows
    else:
        aligned = np.empty_like(rows)
        yield aligned
        rows[:] = aligned


def widened(rows: U8, dtype: str, n_columns: int, *, e8m0: bool = False) -> F32:
    """Return stored numbers of a dtype as float32 [n_rows, n_columns]."""
    if dtype in FLOATS:
        return decode(rows, FLOATS[dtype], n_columns)
    return numbers(rows, "E8M0" if dtype == "U8" and e8m0 else WIDENED[dtype], n_columns)


def can_widen(tensor: StoredTensor, *, e8m0: bool = False) -> bool:
    """Whether `widened` supports a tensor's dtype."""
    return tensor.dtype in FLOATS or tensor.dtype in WIDENED or (tensor.dtype == "U8" and e8m0)


def read_groups(tensor: StoredTensor, n_groups: int) -> I32:
    """Return the group of each input channel, int32.

    Raises CheckpointError if one is not below n_groups.
    """
    found = np.empty(tensor.n_bytes, np.uint8)
    tensor.file.read(tensor.offset, found)
    groups = found.view("<i4").astype(np.int32)
    if groups.min() < 0 or groups.max() >= n_groups:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} has groups {groups.min()} to {groups.max()}, but the"
            f" scales have {n_groups} groups; the file is damaged, download it again"
        )
    return groups
