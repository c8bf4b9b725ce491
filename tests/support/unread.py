"""Tensors of which only name and shape are wanted: whoever reads them fails."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.arch.base import ModelTensor
from dynquant.arrays import U8
from dynquant.quants import ALL, QuantType


@dataclass(frozen=True)
class Unread:
    """A source of which only the shape is wanted."""

    shape: tuple[int, ...]
    stored: QuantType = ALL["BF16"]

    def read(self, start: int, stop: int, into: U8) -> None:
        raise AssertionError(f"matching read rows {start}..{stop} into {into.shape}")


def unread(name: str, *shape: int) -> ModelTensor:
    """A BF16 tensor."""
    return ModelTensor(name, Unread(shape))
