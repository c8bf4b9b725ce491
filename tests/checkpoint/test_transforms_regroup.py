from __future__ import annotations

import numpy as np
import pytest

from dynquant.tensors import Computed, TensorSource
from dynquant.transforms import (
    Columns,
    negated_exp,
    parts_of_groups,
    read_weights,
    squeezed,
    tiled_columns,
    tiled_heads,
)

RNG = np.random.default_rng(0)


def whole(source: TensorSource) -> np.ndarray:
    """Return all rows; checks that reading them one by one gives the same."""
    n = int(np.prod(source.shape[:-1]))
    rows = [read_weights(source, row, row + 1) for row in range(n)]
    at_once = read_weights(source, 0, n)
    assert np.array_equal(np.concatenate(rows), at_once)
    return at_once.reshape(source.shape)


def test_parts_of_groups_are_joined_part_by_part() -> None:
    # Three groups of seven rows: two queries, two keys, three values each.
    x = RNG.standard_normal((21, 5)).astype(np.float32)
    groups = x.reshape(3, 7, 5)
    expected = [groups[:, :2], groups[:, 2:4], groups[:, 4:]]
    found = whole(parts_of_groups(Computed(x), 3, ((0, 2), (2, 4), (4, 7))))
    assert np.array_equal(found, np.concatenate([e.reshape(-1, 5) for e in expected]))
    gates = whole(parts_of_groups(Computed(x), 3, ((4, 7),)))
    assert np.array_equal(gates, groups[:, 4:].reshape(-1, 5))


def test_a_dimension_of_one_is_removed() -> None:
    x = RNG.standard_normal((6, 1, 3)).astype(np.float32)
    assert np.array_equal(whole(squeezed(Computed(x), 1)), x[:, 0])
    with pytest.raises(ValueError, match="dimension 0"):
        squeezed(Computed(x), 0)


def test_negated_exp_is_rounded_from_float64() -> None:
    x = RNG.standard_normal((1, 1000)).astype(np.float32)
    expected = (-np.exp(x.astype(np.float64))).astype(np.float32)
    assert np.array_equal(whole(negated_exp(Computed(x))), expected)


def test_heads_of_groups_are_tiled_after_rows_that_stay() -> None:
    # Five rows, then two groups of three heads of four rows.
    x = RNG.standard_normal((5 + 24, 7)).astype(np.float32)
    heads = x[5:].reshape(2, 3, 4, 7).transpose(1, 0, 2, 3).reshape(24, 7)
    found = whole(tiled_heads(Computed(x), 2, 4, 5))
    assert np.array_equal(found, np.concatenate([x[:5], heads]))


def test_elements_of_a_vector_are_tiled() -> None:
    x = np.arange(6, dtype=np.float32)
    assert whole(tiled_heads(Computed(x), 2, 1)).tolist() == [0, 3, 1, 4, 2, 5]


def test_columns_are_tiled_as_rows_are() -> None:
    x = RNG.standard_normal((7, 24)).astype(np.float32)
    found = whole(tiled_columns(Computed(x), 2, 4))
    assert np.array_equal(found, whole(tiled_heads(Computed(x.T.copy()), 2, 4)).T)


def test_pieces_that_do_not_make_up_a_row_are_no_columns() -> None:
    x = RNG.standard_normal((7, 24)).astype(np.float32)
    with pytest.raises(ValueError, match="5 pieces of 4"):
        Columns(Computed(x), np.arange(5), 4)
