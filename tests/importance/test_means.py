"""Means of few tokens are mostly chance, and count accordingly."""

from __future__ import annotations

import numpy as np

from dynquant.importance.means import without_chance


def sums(n: int, true: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = true + np.random.default_rng(seed).normal(size=(n, len(true)))
    return x.sum(0).astype(np.float32), (x**2).sum(0).astype(np.float32)


def test_true_means_stay_and_chance_goes() -> None:
    true = np.where(np.arange(500) % 5, 0, 2.0)
    linear, squares = sums(20000, true, 0)
    found = without_chance(linear, squares, 20000)
    assert found is not None
    np.testing.assert_allclose(found, linear / 20000, rtol=1e-3)


def test_the_error_is_smaller_than_that_of_the_means_themselves() -> None:
    true = np.random.default_rng(1).normal(0, 0.1, 500)
    for n in (5, 30, 300):
        linear, squares = sums(n, true, n)
        found = without_chance(linear, squares, n)
        assert found is not None
        assert np.square(found - true).sum() < np.square(linear / n - true).sum()


def test_means_that_are_all_chance_are_unknown() -> None:
    unknown = [without_chance(*sums(10, np.zeros(2000), seed), 10) is None for seed in range(20)]
    assert 4 < sum(unknown) < 16


def test_one_token_or_none_has_no_mean() -> None:
    linear, squares = sums(1, np.ones(8), 0)
    assert without_chance(linear, squares, 1) is None
    assert without_chance(0 * linear, 0 * squares, 0) is None


def test_dead_channels_have_a_mean_of_zero() -> None:
    linear, squares = sums(1000, np.full(8, 3.0), 0)
    linear[2] = squares[2] = 0
    found = without_chance(linear, squares, 1000)
    assert found is not None and found[2] == 0 and (found[3:] > 2.9).all()
