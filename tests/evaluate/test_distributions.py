"""KL divergence from the stored form of a reference, against all tokens in double precision."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from evaluating import (
    F64,
    changed,
    distilled,
    exact_kl,
    exact_logs,
    random_logits,
    random_targets,
    same,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.arrays import F32
from dynquant.evaluate.distributions import (
    DRAWS,
    NotFiniteError,
    compare,
    distil,
    joined,
    log_probabilities,
    stacked,
    uniforms,
)

ROUNDING = 3e-6
"""float32 log-probabilities down to -30 are rounded by at most 1e-6 each."""


def test_kl_of_complete_distributions_equals_the_sum_over_all_tokens() -> None:
    logits = random_logits(50, 300, 1)
    file = changed(logits, 2)
    found = compare(distilled(logits, tail=0), 0, file)
    assert np.abs(found.kl - exact_kl(logits, file)).max() < ROUNDING


def test_complete_distributions_have_no_noise() -> None:
    logits = random_logits(5, 300, 1)
    assert not compare(distilled(logits, tail=0), 0, changed(logits, 2)).noise.any()


def one_position() -> tuple[F32, F32]:
    """Return logits of the reference and of a file, whose error is larger for unlikely tokens."""
    one = random_logits(1, 400, 3)
    return one, changed(one, 4, 0.2) - np.float32(0.15) * np.abs(one - one.max())


@cache
def many_draws(n: int = 4000) -> tuple[F64, F64, float]:
    """Return kl and noise of n draws from the tail of one position, and the exact kl."""
    one, file = one_position()
    reference = distilled(np.repeat(one, n, axis=0), tail=0.25, window=9)
    found = compare(reference, 0, np.repeat(file, n, axis=0))
    return found.kl, found.noise, float(exact_kl(one, file)[0])


def test_kl_by_a_sampled_tail_has_no_bias() -> None:
    kl, noise, exact = many_draws()
    standard_error = np.sqrt((noise**2).mean() / len(kl))
    assert noise.min() > 0
    assert abs(kl.mean() - exact) < 4 * standard_error


def test_reported_noise_is_the_spread_of_the_draws() -> None:
    kl, noise, _ = many_draws()
    assert np.sqrt((noise**2).mean()) == pytest.approx(kl.std(), rel=0.08)


def test_kl_of_the_kept_tokens_only_would_have_a_bias() -> None:
    one, file = one_position()
    ids = distilled(one, tail=0.25).ids
    p, q = exact_logs(one)[0, ids], exact_logs(file)[0, ids]
    kl, noise, exact = many_draws()
    standard_error = np.sqrt((noise**2).mean() / len(kl))
    assert abs((np.exp(p) * (p - q)).sum() - exact) > 20 * standard_error


@pytest.mark.parametrize("tail", [0.0, 2.0**-6, 0.5])
def test_a_reference_against_itself_is_exactly_zero(tail: float) -> None:
    logits = random_logits(30, 500, 6)
    found = compare(distilled(logits, tail=tail), 0, logits)
    assert not found.kl.any()
    assert not found.noise.any()
    assert found.same_top.all()
    assert np.array_equal(found.nll, found.base_nll)


def test_perplexity_is_of_the_tokens_that_follow() -> None:
    logits = random_logits(20, 100, 7)
    file, rows = changed(logits, 8), np.arange(20)
    targets = random_targets(20, 100)
    found = compare(distilled(logits, tail=0.1), 0, file)
    assert np.allclose(found.nll, -exact_logs(file)[rows, targets], atol=ROUNDING)
    assert np.allclose(found.base_nll, -exact_logs(logits)[rows, targets], atol=ROUNDING)


def test_same_top_compares_the_most_likely_tokens() -> None:
    logits = random_logits(200, 20, 7)
    file = changed(logits, 8, 2.0)
    found = compare(distilled(logits, tail=0.1), 0, file)
    assert np.array_equal(found.same_top, logits.argmax(axis=1) == file.argmax(axis=1))
    assert 0 < found.same_top.sum() < 200


@given(st.floats(1e-9, 0.5), st.floats(0.1, 12), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_most_likely_tokens_are_kept_up_to_the_tail(
    tail: float, spread: float, seed: int
) -> None:
    logits = random_logits(1, 90, seed, spread)
    found, p = distilled(logits, tail=tail), np.exp(exact_logs(logits)[0])
    if found.counts[0] == 90:
        return
    left = np.setdiff1d(np.arange(90), found.ids)
    assert p[left].sum() <= tail * (1 + 1e-5)
    assert p[left].max() <= p[found.ids].min()
    assert found.tail[0] == pytest.approx(p[left].sum(), rel=1e-4)
    assert np.isin(found.drawn, left).all()
    assert np.allclose(found.logs, exact_logs(logits)[0, found.ids], atol=1e-5)


def test_flat_distributions_are_kept_completely() -> None:
    found = distilled(random_logits(3, 1000, 1, spread=0.01), tail=2.0**-6)
    assert found.counts.tolist() == [1000] * 3
    assert len(found.ids) == 0


@given(st.lists(st.integers(1, 7), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_results_do_not_depend_on_how_rows_are_cut(sizes: list[int]) -> None:
    n = sum(sizes)
    logits = random_logits(n, 120, 11, spread=2)
    file, random, targets = changed(logits, 12), uniforms(3, n), random_targets(n, 120)
    starts = np.cumsum([0, *sizes]).tolist()
    parts = [slice(a, b) for a, b in pairwise(starts)]
    whole = distil(logits, targets, tail=0.02, random=random)
    cut = [distil(logits[p], targets[p], tail=0.02, random=random[p]) for p in parts]
    assert same(stacked(cut), whole)
    pieces = [compare(whole, p.start, file[p]) for p in parts]
    assert same(joined(pieces), compare(whole, 0, file))


def test_each_window_draws_other_tokens_and_always_the_same() -> None:
    assert np.array_equal(uniforms(4, 3), uniforms(4, 3))
    assert not np.array_equal(uniforms(4, 3), uniforms(5, 3))
    assert np.array_equal(uniforms(4, 3), uniforms(4, 9)[:3])


# ---- excluded tokens, and numbers that are not finite ----


@pytest.mark.parametrize("tail", [0.0, 0.1])
def test_tokens_that_both_exclude_add_nothing(tail: float) -> None:
    logits = random_logits(10, 200, 13)
    file = changed(logits, 14)
    logits[:, 50:90] = file[:, 50:90] = -np.inf
    found = compare(distilled(logits, tail=tail), 0, file)
    exact = exact_kl(logits, file)
    assert np.abs(found.kl - exact).max() < 6 * found.noise.max() + ROUNDING


def test_a_token_that_only_the_file_excludes_costs_much_but_not_infinitely() -> None:
    logits = random_logits(4, 50, 15)
    file = logits.copy()
    file[:, logits[0].argmax()] = -np.inf
    found = compare(distilled(logits, tail=0), 0, file)
    assert np.isfinite(found.kl).all()
    assert found.kl[0] > 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    logits = random_logits(3, 20, 1)
    logits[1, 7] = value
    with pytest.raises(NotFiniteError):
        log_probabilities(logits)


def test_a_position_without_any_possible_token_is_an_error() -> None:
    logits = random_logits(3, 20, 1)
    logits[1] = -np.inf
    with pytest.raises(NotFiniteError):
        log_probabilities(logits)


def test_log_probabilities_do_not_change_the_logits() -> None:
    logits = random_logits(3, 20, 1)
    before = logits.copy()
    log_probabilities(logits)
    assert np.array_equal(before, logits)


def test_a_token_excluded_by_the_smallest_float32_has_no_probability() -> None:
    # llama.cpp excludes the image tokens of Chameleon with -FLT_MAX.
    found = log_probabilities(np.array([[np.finfo(np.float32).min, 9, 9]], np.float32))
    assert found[0, 1] == pytest.approx(-np.log(2))
    assert np.exp(found[0, 0]) == 0


def test_a_vocabulary_of_one_token_is_kept() -> None:
    found = distilled(random_logits(2, 1, 1), tail=0.5)
    assert found.counts.tolist() == [1, 1]
    assert found.drawn.shape == (2, DRAWS)
