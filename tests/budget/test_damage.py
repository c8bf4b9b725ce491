"""Factors of damage: measured ones first, the size of the logits, and places in the depth."""

from __future__ import annotations

import numpy as np
import pytest

from dynquant.budget.damage import Factors
from dynquant.budget.errors import TensorErrors

LAYERS = tuple(f"blk.{n}.ffn_down.weight" for n in range(8))


def factors(*more: str, outputs: float | None = None, **measured: float) -> Factors:
    last = "output.weight" if "output.weight" in more else "token_embd.weight"
    errors = {last: TensorErrors({}, "", outputs)}
    names = ("token_embd.weight", *LAYERS, *more)
    return Factors.of_errors(names, errors, {f"{k}.weight": v for k, v in measured.items()})


def test_a_measured_factor_is_taken() -> None:
    assert factors(token_embd=3.5).of("token_embd.weight") == 3.5


def test_errors_of_the_logits_cost_as_much_as_the_logits_are_large() -> None:
    small, large = (factors(outputs=n).of("token_embd.weight") for n in (2.0, 200.0))
    assert large == pytest.approx(100 * small)


def test_only_the_matrix_that_makes_the_logits_has_their_factor() -> None:
    untied = factors("output.weight", outputs=200.0)
    assert untied.of("output.weight") == factors(outputs=200.0).of("token_embd.weight")
    assert untied.of("token_embd.weight") == factors("output.weight").of("token_embd.weight")


def test_without_the_size_of_the_logits_they_have_a_usual_factor() -> None:
    assert factors().of("token_embd.weight") > 30 * max(map(factors().of, LAYERS))


def test_layers_have_the_factors_of_their_part_of_the_depth() -> None:
    found = [factors().of(name) for name in LAYERS]
    assert found[::2] == found[1::2]
    assert found[0] > found[2]


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
    expected = 1e-3 * factors(outputs=9.0).of("token_embd.weight")
    assert expected == pytest.approx(divergence, rel=0.5)
