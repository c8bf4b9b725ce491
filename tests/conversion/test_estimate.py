"""The time left is estimated from the work that is left, not from bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynquant.conversion.estimate import EXPECTED, Estimate
from dynquant.quants.table import ALL, KEPT


def estimate(**weights: int) -> Estimate:
    """Return the estimate of a plan with so many weights of each type."""
    types = {**ALL, **KEPT}
    tensors = [(SimpleNamespace(type=types[t], n_per_row=1), range(n)) for t, n in weights.items()]
    scope: Any = SimpleNamespace(tensors=tensors)
    return Estimate(scope)


def test_every_type_has_an_expected_speed() -> None:
    assert {*ALL, *KEPT} == EXPECTED.keys()


def test_integers_that_are_copied_have_an_estimate_too() -> None:
    e = estimate(Q8_0=100, I32=100)
    e.count("I32", 50, 1.0)
    assert e.seconds_left(1) == pytest.approx(1.0 + 100 / 50 * 4)


def test_nothing_is_known_before_the_first_weights() -> None:
    assert estimate(Q8_0=100).seconds_left(2) is None


def test_types_keep_the_speed_that_was_measured() -> None:
    e = estimate(Q8_0=100, IQ1_S=100)
    e.count("Q8_0", 50, 1.0)
    e.count("IQ1_S", 10, 4.0)
    assert e.seconds_left(1) == pytest.approx(1.0 + 90 * 0.4)
    assert e.seconds_left(2) == pytest.approx((1.0 + 90 * 0.4) / 2)


def test_a_type_that_was_not_encoded_yet_differs_as_expected() -> None:
    e = estimate(Q8_0=100, IQ1_S=100)
    e.count("Q8_0", 100, 1.0)
    ratio = EXPECTED["IQ1_S"] / EXPECTED["Q8_0"]
    assert e.seconds_left(1) == pytest.approx(ratio)


def test_weights_of_an_earlier_run_say_nothing_about_speed() -> None:
    e = estimate(Q8_0=100)
    e.skip("Q8_0", 40)
    assert e.seconds_left(1) is None
    e.count("Q8_0", 30, 3.0)
    assert e.seconds_left(1) == pytest.approx(3.0)


def test_the_end_has_no_time_left() -> None:
    e = estimate(Q8_0=100, F32=10)
    e.count("Q8_0", 100, 1.0)
    e.count("F32", 10, 0.0)
    assert e.seconds_left(3) == 0
