"""The errors of several tensors as one figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from dynquant.plan.plan import TensorPlan


class MeasuredError(Protocol):
    """The error of one tensor, measured or as a manifest has it: see `TensorError`."""

    @property
    def weighted(self) -> float:
        """Importance-weighted squared error, relative to the weighted squares of the tensor."""
        ...

    @property
    def one_minus_cos2(self) -> float:
        """The same after the best single factor."""
        ...

    @property
    def max(self) -> float:
        """The largest difference of a weight."""
        ...


@dataclass(frozen=True)
class Loss:
    """Errors of several tensors together.

    weighted, one_minus_cos2: the mean of the tensors' figures, each counted by its number of
               weights (not the relative error of all weights as one tensor)
    max:       the largest difference of a weight
    n_weights: weights of the tensors that were measured
    """

    weighted: float
    one_minus_cos2: float
    max: float
    n_weights: int


NOTHING_LOST = Loss(0.0, 0.0, 0.0, 0)
"""The errors of a file whose weights are all the numbers they were."""


def loss_of(tensors: Iterable[TensorPlan], errors: Mapping[str, MeasuredError]) -> Loss | None:
    """Return the errors of those tensors that were measured; None if none was."""
    found = [(t.n_weights, errors[t.name]) for t in tensors if t.name in errors]
    total = sum(n for n, _ in found)
    if not total:
        return None
    return Loss(
        sum(n * e.weighted for n, e in found) / total,
        sum(n * e.one_minus_cos2 for n, e in found) / total,
        max(e.max for _, e in found),
        total,
    )
