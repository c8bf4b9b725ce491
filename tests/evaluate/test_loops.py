"""Loops: a pattern of 1 to 1,024 tokens, at least 4 times at the end, 64 tokens or more in all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.evaluate.generation import Answer
from dynquant.evaluate.loops import loop_of


def by_definition(tokens: Sequence[int]) -> int | None:
    """Return the shortest pattern by the rule of the issue, tried one after another."""
    for period in range(1, 1025):
        n = max(64, 4 * period)
        tail = tokens[-n:]
        if len(tail) == n and all(tail[i] == tail[i - period] for i in range(period, n)):
            return period
    return None


def different(n: int, first: int = 0) -> list[int]:
    """Return tokens that do not repeat."""
    return list(range(first, first + n))


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(0, 70),
    st.integers(0, 39),
)
@settings(max_examples=150, deadline=None)
def test_repetition_is_found_as_defined(
    before: list[int], pattern: list[int], repeats: int, rest: int
) -> None:
    tokens = before + pattern * repeats + pattern[:rest]
    assert loop_of(tokens) == by_definition(tokens)


@given(st.integers(1, 1030), st.integers(-1, 1))
@settings(max_examples=40, deadline=None)
def test_a_pattern_is_a_loop_from_four_times_and_64_tokens(period: int, more: int) -> None:
    n = max(64, 4 * period) + more
    pattern = different(period)
    tokens = (pattern * (n // period + 1))[:n]
    assert loop_of(tokens) == (period if more >= 0 and period <= 1024 else None)


@pytest.mark.parametrize("period", [1, 2, 16, 17, 63, 64, 65, 1023, 1024])
def test_patterns_up_to_1024_tokens_are_found_after_other_text(period: int) -> None:
    tokens = [*different(100, 5000), *(different(period) * max(4, -(-64 // period)))]
    assert loop_of(tokens) == period


def test_a_pattern_of_1025_tokens_is_not_a_loop() -> None:
    assert loop_of(different(1025) * 6) is None


@pytest.mark.parametrize(("period", "repeats"), [(1, 63), (8, 7), (16, 3), (64, 3), (1024, 3)])
def test_fewer_repetitions_are_not_a_loop(period: int, repeats: int) -> None:
    assert loop_of([*different(50, 5000), *(different(period) * repeats)]) is None


@pytest.mark.parametrize("rest", [1, 9, 19])
def test_the_last_repetition_may_be_incomplete(rest: int) -> None:
    assert loop_of(different(20) * 4 + different(rest)) == 20


def test_a_text_that_leaves_the_repetition_is_not_a_loop() -> None:
    assert loop_of([*(different(5) * 40), 99]) is None


def test_the_shortest_pattern_is_reported() -> None:
    assert loop_of([1, 2, 1, 2] * 40) == 2


@pytest.mark.parametrize("n", [0, 1, 3, 63])
def test_short_texts_do_not_loop(n: int) -> None:
    assert loop_of([7] * n) is None


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_random_text_does_not_loop(seed: int) -> None:
    assert loop_of(np.random.default_rng(seed).integers(0, 50, 3000).tolist()) is None


def test_an_answer_that_ends_does_not_loop() -> None:
    # A list or a table may repeat a line; a loop is what has no end.
    assert Answer((1,) * 100, is_ended=True).loop is None
    assert Answer((1,) * 100, is_ended=False).loop == 1
