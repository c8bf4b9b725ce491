"""Tensors of which only name and shape are needed; reading them fails the test."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.arch.base import ModelTensor
from dynquant.arrays import U8
from dynquant.quants import ALL, QuantType


@dataclass(frozen=True)
class Unread:
    """A source that must not be read."""

    shape: tuple[int, ...]
    stored: QuantType = ALL["BF16"]

    def read(self, start: int, stop: int, into: U8) -> None:
        raise AssertionError(f"rows {start}..{stop} were read into {into.shape}")


def unread(name: str, *shape: int) -> ModelTensor:
    """Return a BF16 tensor that must not be read."""
    return ModelTensor(name, Unread(shape))
