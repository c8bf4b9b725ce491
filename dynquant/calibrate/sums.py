"""What is collected of the inputs of a matrix: their number, their sums and the sums of squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Sums over the inputs of one matrix.

    count:   number of inputs
    linear:  float64 [n_channels], the sum of each channel
    squares: float64 [n_channels], the sum of its squares
    """

    count: int
    linear: F64
    squares: F64

    @classmethod
    def nothing(cls, n_channels: int) -> Self:
        """Return the sums of no input."""
        return cls(0, np.zeros(n_channels), np.zeros(n_channels))

    @classmethod
    def of(cls, inputs: Any) -> Self:
        """Return the sums of a tensor's rows, float32 [..., n_channels]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.float64)
        return cls(len(rows), rows.sum(dim=0).cpu().numpy(), rows.square().sum(dim=0).cpu().numpy())

    def __add__(self, other: Sums) -> Sums:
        """Return the sums of the inputs of both."""
        return Sums(
            self.count + other.count, self.linear + other.linear, self.squares + other.squares
        )

    @property
    def is_finite(self) -> bool:
        """Whether all inputs were numbers."""
        return bool(np.isfinite(self.linear).all() and np.isfinite(self.squares).all())
