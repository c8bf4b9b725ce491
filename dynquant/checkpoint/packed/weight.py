"""A weight that a checkpoint holds in several tensors, and what can be wrong with such a group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    """A weight by its name: one stored tensor, or several that make it up."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in numpy, slowest dimension first."""
        ...

    def source(self) -> TensorSource:
        """Return its rows; raise CheckpointError for a dtype that is none of GGUF's."""
        ...


@dataclass(frozen=True)
class Packed:
    """A weight that was quantized: its rows, and the stored tensors that they are made of.

    kept: its blocks, where they need a factor beside them; None where `rows` are all there is
    """

    rows: TensorSource
    parts: tuple[str, ...]
    kept: Kept | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, not of what is stored."""
        return self.rows.shape

    def source(self) -> TensorSource:
        """Return the rows."""
        return self.rows


@dataclass
class Found:
    """What a checkpoint's tensors turn out to be.

    weights: quantized weights by name; consumed: the tensors that they are made of
    faults:  what is wrong, and the names that have it
    """

    weights: dict[str, Packed] = field(default_factory=dict[str, Packed])
    consumed: set[str] = field(default_factory=set[str])
    faults: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def add(
        self, name: str, rows: TensorSource, parts: Iterable[str], kept: Kept | None = None
    ) -> None:
        """Note a weight and what it is made of."""
        self.weights[name] = Packed(rows, tuple(parts), kept)
        self.consumed.update(self.weights[name].parts)

    def fault(self, name: str, text: str, parts: Iterable[str] = ()) -> None:
        """Note what is wrong with a weight; what it is made of is not reported again."""
        self.faults.setdefault(text, []).append(name)
        self.consumed.update((name, *parts))

    def messages(self, folder: Path) -> Iterator[str]:
        """Yield a message for each fault, with all that have it."""
        for text, names in self.faults.items():
            yield from (f"{folder}: {name} {text}" for name in grouped(names))


def lacking(names: Iterable[str], tensors: Mapping[str, StoredTensor], base: str) -> str | None:
    """Return what to say of companions that are not there, named as they follow a base."""
    missing = [n for n in names if base + n not in tensors]
    if not missing:
        return None
    all_of_them = " and ".join(f"*{n}" for n in missing)
    verb = "is" if len(missing) == 1 else "are"
    return f"cannot be read without {all_of_them}, which {verb} missing; download it again"


WIDENED: dict[str, Number] = {"F8_E4M3": "E4M3", "F8_E5M2": "E5M2", "F8_E8M0": "E8M0", "I8": "I8"}
"""Dtypes of eight bits, and the numbers that they are."""


def read_bytes(tensor: StoredTensor, n_rows: int, first: int, last: int) -> U8:
    """Return rows first..last of a tensor seen as n_rows rows, uint8 [last - first, bytes]."""
    size = tensor.n_bytes // n_rows
    found = np.empty((last - first, size), np.uint8)
    tensor.file.read(tensor.offset + first * size, found.reshape(-1))
    return found


@dataclass(frozen=True)
class Grid:
    """Numbers beside a weight, [n_rows, n_columns] over all its matrices: scales or zeros.

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


def widened(rows: U8, dtype: str, n_columns: int, *, e8m0: bool = False) -> F32:
    """Return stored numbers of a dtype as float32 [n_rows, n_columns]."""
    if dtype in FLOATS:
        return decode(rows, FLOATS[dtype], n_columns)
    return numbers(rows, "E8M0" if dtype == "U8" and e8m0 else WIDENED[dtype], n_columns)


def can_widen(tensor: StoredTensor, *, e8m0: bool = False) -> bool:
    """Whether `widened` knows a tensor's dtype."""
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
            f"{tensor.path}: {tensor.name} has groups {groups.min()} to {groups.max()}, but there"
            f" are scales of {n_groups}; the file is damaged, download it again"
        )
    return groups
