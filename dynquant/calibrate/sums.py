"""What is collected of the inputs of a matrix: their number, their sums and the sums of squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_AT_ONCE = 1 << 15
"""Numbers that are converted to float64 at once: as many as stay in a processor's cache."""


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
        rows = inputs.reshape(-1, inputs.shape[-1])
        if rows.device.type == "mps":  # has no float64
            rows = rows.cpu()
        exact = {"dtype": torch.float64, "device": rows.device}
        linear, squares = torch.zeros((2, rows.shape[1]), **exact)
        n = max(16, _AT_ONCE // rows.shape[1])
        space = torch.empty((min(n, len(rows)), rows.shape[1]), **exact)
        for some in rows.split(n):
            values = space[: len(some)].copy_(some)
            linear += values.sum(dim=0)
            squares += values.mul_(values).sum(dim=0)
        return cls(len(rows), linear.cpu().numpy(), squares.cpu().numpy())

    def __add__(self, other: Sums) -> Sums:
        """Return the sums of the inputs of both."""
        return Sums(
            self.count + other.count, self.linear + other.linear, self.squares + other.squares
        )

    @property
    def is_finite(self) -> bool:
        """Whether all inputs were numbers."""
        return bool(np.isfinite(self.linear).all() and np.isfinite(self.squares).all())
