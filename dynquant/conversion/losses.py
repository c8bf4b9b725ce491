"""How well a file holds its weights: the errors of its manifest, put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dynquant.conversion.manifest import Errors
from dynquant.plan.plan import TensorPlan


@dataclass(frozen=True)
class Loss:
    """Errors of several tensors together.

    weighted, one_minus_cos2: their means, each tensor as heavy as its weights are many
    max:       the largest
    n_weights: of the tensors that were measured
    """

    weighted: float
    one_minus_cos2: float
    max: float
    n_weights: int


def loss_of(tensors: Iterable[TensorPlan], errors: Mapping[str, Errors]) -> Loss | None:
    """Return the errors of tensors together; None where none was measured, others do not count."""
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
