"""What every size of a model is expected to lose: the best choice of types for each."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.budget.knapsack import solve
from dynquant.budget.solve import Problem, items_of

STEPS = 16
"""Sizes from the smallest to the largest that the rules allow."""


@dataclass(frozen=True)
class Size:
    """The best choice of types for a size.

    tensor_bytes: of all tensors; damage: expected, in nats
    """

    tensor_bytes: int
    bits_per_weight: float
    damage: float


def sizes_of(problem: Problem) -> list[Size]:
    """Return the best choices for sizes in equal ratios, from the smallest to the largest."""
    items = items_of(problem)
    fixed = sum(t.n_bytes for t in problem.plan.tensors if t.name not in problem.open)
    least = sum(min(o.n_bytes for o in item) for item in items)
    most = sum(max(o.n_bytes for o in item) for item in items)
    found: dict[int, Size] = {}
    for step in range(STEPS):
        room = least * (most / least) ** (step / (STEPS - 1)) if least else 0.0
        solution = solve(items, max(least, round(room)))
        assert solution is not None, "the smallest options fit"
        n_bytes = fixed + solution.n_bytes
        bits = 8 * n_bytes / problem.plan.n_weights
        found[n_bytes] = Size(n_bytes, bits, solution.damage)
    return list(found.values())
