"""The errors of several tensors as one figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from dynquant.name_lists import grouped
from dynquant.plan.checks import SPECIAL_TYPES
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


_POOR, _LOST = 0.15, 0.5
"""Relative squared errors: with more than the first, a model of a special type answers nonsense;
more than the second means that most of a tensor is lost, in any type."""


_ROUNDED = 16.0
"""The largest difference of a weight within the range of F16: half of its last step."""


def loss_warnings(
    tensors: Iterable[TensorPlan], errors: Mapping[str, MeasuredError]
) -> tuple[str, ...]:
    """Return warnings of tensors whose errors are so large that answers are probably nonsense."""
    lost: list[str] = []
    beyond: list[str] = []
    poor: dict[str, list[str]] = {}
    for t in tensors:
        error = errors[t.name].weighted if t.name in errors else 0.0
        if error > _LOST:
            lost.append(t.name)
        elif t.type.name == "F16" and t.name in errors and errors[t.name].max > _ROUNDED:
            beyond.append(t.name)
        elif t.type.name in SPECIAL_TYPES and error > _POOR:
            poor.setdefault(t.type.name, []).append(t.name)
    found: list[str] = []
    if lost:
        worst = max(errors[name].weighted for name in lost)
        found.append(
            f"{', '.join(grouped(lost))}: more than half is lost (relative squared error up to"
            f" {worst:.3g}); the weights are probably beyond the range of the type: use BF16 or F32"
        )
    if beyond:
        worst = max(errors[name].max for name in beyond)
        found.append(
            f"{', '.join(grouped(beyond))}: weights beyond the range of F16 became 65504 (a"
            f" difference of up to {worst:.3g}); use BF16 or F32"
        )
    for name, some in poor.items():
        worst = max(errors[n].weighted for n in some)
        found.append(
            f"{', '.join(grouped(some))}: {name} has a relative squared error of up to {worst:.3g};"
            " the model was not trained for this type, and its answers are probably nonsense"
        )
    return tuple(found)


def rounded_warnings(
    tensors: Iterable[TensorPlan], errors: Mapping[str, MeasuredError], rounded: Mapping[str, int]
) -> tuple[str, ...]:
    """Return a warning for each grid with weights that differ by the rounding of a scale.

    rounded: their number, by tensor
    """
    by_type: dict[str, list[TensorPlan]] = {}
    for t in tensors:
        if rounded.get(t.name):
            by_type.setdefault(t.type.name, []).append(t)
    return tuple(
        f"{', '.join(grouped(t.name for t in some))}: {sum(rounded[t.name] for t in some):,} of"
        f" {sum(t.n_weights for t in some):,} weights on the grid of {name} differ by the rounding"
        f" of a scale to F16 (relative squared error up to"
        f" {max(errors[t.name].weighted for t in some):.2g})"
        for name, some in by_type.items()
    )


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
