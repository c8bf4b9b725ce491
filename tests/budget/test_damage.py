"""Factors of damage: measured ones first, the size of the logits, and places in the depth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from dynquant.budget.damage import Factors, MeasuredFactor
from dynquant.budget.stream import Stream

DOWN = tuple(f"blk.{n}.ffn_down.weight" for n in range(8))
UP = tuple(f"blk.{n}.ffn_up.weight" for n in range(8))
Shares = Mapping[tuple[int, str], float]


def factors(
    *,
    tied: bool = True,
    logits: float | None = None,
    shares: Shares | None = None,
    measured: Mapping[str, MeasuredFactor] | None = None,
) -> Factors:
    return Factors(8, measured or {}, tied, Stream(shares or {}, logits))


def test_a_measured_factor_is_taken() -> None:
    exact = {"token_embd.weight": MeasuredFactor(3.5, 0.0), DOWN[0]: MeasuredFactor(0.25, 0.0)}
    its = factors(measured=exact, shares={(0, "ffn"): 0.5})
    assert its.of("token_embd.weight") == pytest.approx(3.5)
    assert its.of(DOWN[0]) == pytest.approx(0.25)


def test_a_measured_factor_is_of_the_mean_of_its_part() -> None:
    shares = {(n, "ffn"): 0.9 if n == 0 else 0.1 for n in range(8)}
    usual = factors(shares=shares)
    found = factors(shares=shares, measured=dict.fromkeys(DOWN, MeasuredFactor(0.25, 0.0)))
    for i, name in enumerate(DOWN):
        of_part = factors().of(DOWN[i // 2 * 2])
        assert found.of(name) == pytest.approx(0.25 * usual.of(name) / of_part)


def test_noise_changes_a_factor_little_and_bounds_it() -> None:
    usual = 0.2
    assert MeasuredFactor(0.8, 0.0).beside(usual) == pytest.approx(0.8)
    assert MeasuredFactor(0.8, 8.0).beside(usual) == pytest.approx(usual, rel=0.02)
    between = MeasuredFactor(0.8, 0.56).beside(usual)
    assert between == pytest.approx((0.8 * usual) ** 0.5)
    assert MeasuredFactor(-0.1, 0.01).beside(usual) == pytest.approx(0.02)
    assert MeasuredFactor(-0.1, 0.5).beside(usual) == usual
    assert MeasuredFactor(0.001, 0.01).beside(usual) == pytest.approx(0.021)


def test_what_is_clear_sets_the_level_of_what_is_not() -> None:
    clear = {name: MeasuredFactor(10 * factors().of(name), 0.0) for name in DOWN[2:6]}
    noisy = {UP[3]: MeasuredFactor(0.01, 50.0)}
    found = factors(measured=clear | noisy)
    assert found.of(UP[3]) == pytest.approx(10 * factors().of(UP[3]), rel=0.02)
    assert found.of(UP[2]) == pytest.approx(10 * factors().of(UP[2]))


def test_errors_of_the_logits_cost_as_much_as_the_logits_are_large() -> None:
    small, large = (factors(logits=n).of("token_embd.weight") for n in (2.0, 200.0))
    assert large == pytest.approx(100 * small)


def test_only_the_matrix_that_makes_the_logits_has_their_factor() -> None:
    untied = factors(tied=False, logits=200.0)
    assert untied.of("output.weight") == factors(logits=200.0).of("token_embd.weight")
    assert untied.of("token_embd.weight") == factors(tied=False).of("token_embd.weight")


def test_without_the_size_of_the_logits_they_have_a_usual_factor() -> None:
    assert factors().of("token_embd.weight") > 30 * max(map(factors().of, DOWN))


def test_layers_have_the_factors_of_their_part_of_the_depth() -> None:
    found = [factors().of(name) for name in DOWN]
    assert found[:6:2] == found[1:6:2]
    assert found[0] > found[2]


def test_the_last_layer_of_deep_models_costs_more() -> None:
    found = [factors().of(name) for name in (*DOWN[-2:], *UP[-2:])]
    assert found[1] / found[0] == found[3] / found[2] == 2.5
    few = Factors(4, {}, True, Stream({}, None))
    assert few.of(DOWN[3]) == found[0]
    attention = [factors().of(f"blk.{n}.attn_q.weight") for n in (6, 7)]
    assert attention[0] == attention[1]


def test_layers_that_add_more_to_the_stream_cost_more() -> None:
    shares = {(n, "ffn"): 0.9 if n == 0 else 0.1 for n in range(8)}
    found = factors(shares=shares)
    for names in (DOWN, UP):
        first, second, third, fourth = map(found.of, names[:4])
        assert first > 2.5 * second
        assert third == fourth == pytest.approx(factors().of(names[2]))
    assert found.of("blk.0.attn_q.weight") == factors().of("blk.0.attn_q.weight")


def test_the_factor_of_logits_is_of_the_order_of_their_divergence() -> None:
    # Softmax of logits with independent errors of variance v, by brute force.
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (400, 500))
    v = 1e-3 * 9
    noisy = logits + rng.normal(0, v**0.5, logits.shape)

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = log_softmax(logits), log_softmax(noisy)
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    expected = 1e-3 * factors(logits=9.0).of("token_embd.weight")
    assert expected == pytest.approx(divergence, rel=0.5)
