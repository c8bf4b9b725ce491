"""The best options of all items, against exhaustive search and against HiGHS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from dynquant.budget import knapsack
from dynquant.budget.knapsack import Option, Solution, solve

OPTIONS = st.builds(Option, st.integers(0, 12), st.integers(0, 9).map(float))
ITEMS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), max_size=5)


def exhaustive(items: list[list[Option]], capacity: int) -> float | None:
    """Return the least damage of all choices that fit."""
    fitting = [
        sum(o.damage for o in choice)
        for choice in itertools.product(*items)
        if sum(o.n_bytes for o in choice) <= capacity
    ]
    return min(fitting, default=None)


def check(items: list[list[Option]], capacity: int, found: Solution) -> None:
    """Assert that the figures of a solution are those of its options."""
    chosen = [item[k] for item, k in zip(items, found.chosen, strict=True)]
    assert sum(o.n_bytes for o in chosen) == found.n_bytes <= capacity
    assert sum(o.damage for o in chosen) == pytest.approx(found.damage, rel=1e-12)
    assert found.bound <= found.damage


@settings(max_examples=300, deadline=None)
@given(ITEMS, st.integers(-1, 50))
def test_no_choice_is_better(items: list[list[Option]], capacity: int) -> None:
    found, best = solve(items, capacity), exhaustive(items, capacity)
    assert (found is None) == (best is None)
    if found is not None:
        check(items, capacity, found)
        assert found.is_best
        assert found.damage == best


def model_like(n_items: int, seed: int, *, equal_sizes: bool) -> list[list[Option]]:
    """Return items such as a model's: damage falls by about four for each bit."""
    rng = np.random.default_rng(seed)
    bits = [1.56, 1.75, 2.06, 2.31, 2.56, 2.63, 3.06, 3.44, 4.25, 4.5, 5.5, 6.56, 8.5]
    items: list[list[Option]] = []
    for _ in range(n_items):
        size = 4096 * 256 if equal_sizes else int(rng.integers(1, 60)) * 4096
        scale = size * np.exp(rng.normal())
        items.append(
            [
                Option(int(size * b / 8) // 32 * 32, scale * 4.0**-b * np.exp(0.2 * rng.normal()))
                for b in bits
            ]
        )
    return items


def highs(items: list[list[Option]], capacity: int) -> float:
    """Return the least damage by HiGHS."""
    sizes = np.array([o.n_bytes for item in items for o in item], float)
    damage = np.array([o.damage for item in items for o in item])
    one = np.zeros((len(items), len(sizes)))
    at = 0
    for i, item in enumerate(items):
        one[i, at : at + len(item)] = 1
        at += len(item)
    scale = damage.max()
    solved = milp(
        damage / scale,
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(sizes, 0, capacity)],
        integrality=np.ones(len(sizes)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    assert solved.success
    return float(damage @ np.round(solved.x))


@pytest.mark.parametrize("equal_sizes", [False, True])
@pytest.mark.parametrize("share", [0.25, 0.45])
def test_no_choice_is_better_by_another_solver(share: float, *, equal_sizes: bool) -> None:
    items = model_like(25, 7, equal_sizes=equal_sizes)
    capacity = int(share * sum(item[-1].n_bytes for item in items))
    found = solve(items, capacity)
    assert found is not None
    check(items, capacity, found)
    assert found.damage == pytest.approx(highs(items, capacity), rel=1e-9)


def test_a_thousand_tensors_are_solved_within_a_millionth_of_the_bound() -> None:
    items = model_like(1025, 3, equal_sizes=False)
    capacity = int(0.3 * sum(item[-1].n_bytes for item in items))
    found = solve(items, capacity)
    assert found is not None
    check(items, capacity, found)
    assert found.damage <= found.bound * (1 + 1e-5)
    assert found.n_bytes > capacity * 0.99999


def test_a_solution_that_is_not_proven_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MOST_STATES", 1)
    items = model_like(40, 5, equal_sizes=False)
    capacity = int(0.3 * sum(item[-1].n_bytes for item in items)) + 17
    found = solve(items, capacity)
    assert found is not None
    check(items, capacity, found)
    assert not found.is_best
