"""Sums with changes of low rank, and their way through transforms; the oracle is NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dynquant import transforms
from dynquant.arch.adapters.low_rank import LowRank, Merged, add_product, stacked, through
from dynquant.arch.families.baichuan import unit_rows
from dynquant.errors import AdapterError
from dynquant.tensors import Computed, TensorSource
from dynquant.transforms import read_weights


def change(n_out: int, n_in: int, rank: int, seed: int = 0, factor: float = 0.75) -> LowRank:
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((n_out, rank)).astype(np.float32)
    right = rng.standard_normal((rank, n_in)).astype(np.float32)
    return LowRank(Computed(left), Computed(right), factor)


def whole(source: TensorSource) -> np.ndarray:
    n = int(np.prod(source.shape[:-1]))
    return read_weights(source, 0, n).reshape(source.shape)


def product(found: LowRank) -> np.ndarray:
    left, right = whole(found.left).astype(np.float64), whole(found.right).astype(np.float64)
    return found.factor * (left @ right)


@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (5, 70_001), (300, 256)])
@pytest.mark.parametrize("rank", [1, 16])
def test_sum_is_that_of_float64_within_rounding(rows: int, columns: int, rank: int) -> None:
    rng = np.random.default_rng(rank)
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    left = rng.standard_normal((rows, rank)).astype(np.float32)
    right = rng.standard_normal((rank, columns)).astype(np.float32)
    wanted = weights + 0.3 * (left.astype(np.float64) @ right.astype(np.float64))
    size = np.abs(weights) + 0.3 * (np.abs(left).astype(np.float64) @ np.abs(right))
    add_product(weights, left, right, np.float32(0.3))
    assert (np.abs(weights - wanted) <= (rank + 2) * np.finfo(np.float32).eps * size).all()


@pytest.mark.parametrize("step", [1, 3, 64, 997])
def test_bytes_do_not_depend_on_the_range_that_is_read(step: int) -> None:
    rng = np.random.default_rng(5)
    base = Computed(rng.standard_normal((997, 130)).astype(np.float32))
    merged = Merged(base, change(997, 130, 7), "here")
    parts = [read_weights(merged, i, min(i + step, 997)) for i in range(0, 997, step)]
    np.testing.assert_array_equal(np.concatenate(parts), whole(merged))


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "heads": lambda t: transforms.interleaved_heads(t, 3),
    "some rows": lambda t: transforms.rows_between(t, 4, 9),
    "groups": lambda t: transforms.parts_of_groups(t, 3, [(2, 4), (0, 1)]),
    "transposed": transforms.transposed,
    "columns": lambda t: transforms.tiled_columns(t, 2, 2),
    "scaled": lambda t: transforms.scaled(t, 0.3),
    "f32": transforms.as_f32,
    "several": lambda t: transforms.scaled(
        transforms.transposed(transforms.rows_between(t, 0, 8)), 2.0
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformed_change_is_the_change_of_the_transformed_weight(name: str) -> None:
    via, one = TRANSFORMS[name], change(12, 8, 3)
    wanted = whole(via(Computed(product(one).astype(np.float32))))
    np.testing.assert_allclose(product(through(via, one)), wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_each_expert_are_taken_from_its_own_factors() -> None:
    stack = stacked([change(6, 4, 2, seed) for seed in range(3)])
    via = transforms.second_half_of_each
    wanted = whole(via(Computed(product(stack).astype(np.float32))))
    found = through(via, stack)
    assert found.left.shape == (3, 3, 2)
    np.testing.assert_allclose(product(found), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "via",
    [
        transforms.plus_one,
        transforms.negated_exp,
        unit_rows,
        lambda t: transforms.UnitColumns(t, 1e-6),
        lambda t: transforms.rows_of_each(t, 0, 2, each=4),
        lambda t: transforms.Reshaped(t, (8, 12)),
        lambda t: transforms.in_groups(t, 3),
    ],
)
def test_transforms_that_are_not_linear_or_divide_a_matrix_are_refused(via: Any) -> None:
    with pytest.raises(AdapterError):
        through(via, change(12, 8, 3))
