"""Tensors of which nothing but name, shape and type is known."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.arrays import U8
from dynquant.quants.table import QuantType


@dataclass(frozen=True)
class Header:
    """A tensor of which only name, shape and type are known, as the source of a ModelTensor."""

    shape: tuple[int, ...]
    stored: QuantType

    def read(self, start: int, stop: int, into: U8) -> None:
        """Nothing is there to be read: a recipe needs no rows."""
        raise AssertionError(f"rows {start}..{stop} of a header, into {into.nbytes} bytes")
