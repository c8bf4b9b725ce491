"""Functions that run side by side until each pauses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from dynquant.calibrate.steps import Steps


def test_each_step_ends_when_all_have_paused_or_returned() -> None:
    seen: list[tuple[int, int]] = []

    def body(number: int, n_pauses: int) -> Callable[[], None]:
        def run() -> None:
            for step in range(n_pauses + 1):
                if step:
                    steps.pause()
                assert steps.number == number
                seen.append((step, number))

        return run

    with Steps([body(number, 3 - number) for number in range(3)], at_once=2) as steps:
        left = [steps.advance() for _ in range(4)]
    assert left == [True, True, True, False]
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]


@pytest.mark.parametrize("at_once", [1, 3])
def test_at_most_so_many_run_at_once(at_once: int) -> None:
    running = most = 0
    lock = threading.Lock()

    def body() -> None:
        nonlocal running, most
        for _ in range(3):
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            with lock:
                running -= 1
            steps.pause()

    with Steps([body] * 6, at_once=at_once) as steps:
        while steps.advance():
            pass
    assert most == at_once


def test_the_first_of_several_errors_is_raised_and_all_threads_end() -> None:
    def body(number: int) -> Callable[[], None]:
        def run() -> None:
            steps.pause()
            if number in (1, 2):
                raise ValueError(number)
            steps.pause()

        return run

    before = threading.active_count()
    with (
        pytest.raises(ValueError, match="1"),
        Steps([body(number) for number in range(4)], at_once=4) as steps,
    ):
        while steps.advance():
            pass
    assert threading.active_count() == before


def test_functions_that_are_not_wanted_any_more_are_unwound() -> None:
    ended: list[str] = []

    def body() -> None:
        try:
            steps.pause()
        finally:
            ended.append("unwound")

    with Steps([body, body], at_once=1) as steps:
        steps.advance()
    assert ended == ["unwound", "unwound"]


def test_functions_that_are_running_end_at_their_next_pause() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        may_end.wait(10)
        steps.pause()

    def advance_until_interrupted() -> None:
        with Steps([body], at_once=1) as made:
            nonlocal steps
            steps = made
            threading.Thread(target=made.advance, daemon=True).start()
            begun.wait(10)
            threading.Timer(0.05, may_end.set).start()

    steps = Steps([], at_once=1)
    leaving = threading.Thread(target=advance_until_interrupted, daemon=True)
    leaving.start()
    leaving.join(5)
    assert not leaving.is_alive()


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_what_is_added_in_turn_has_the_order_of_the_functions(at_once: int) -> None:
    added: dict[str, list[int]] = {"a": [], "b": []}

    def body(number: int) -> Callable[[], None]:
        def run() -> None:
            for step in range(3):
                time.sleep(0.002 * ((number * 7 + step) % 5))
                for place in ("a", "b") if number != 2 else ("b",):  # one does not come to a
                    with steps.in_turn(place):
                        added[place].append(10 * step + number)
                steps.pause()

        return run

    with Steps([body(number) for number in range(5)], at_once=at_once) as steps:
        while steps.advance():
            pass
    assert added["b"] == [10 * step + number for step in range(3) for number in range(5)]
    assert added["a"] == [n for n in added["b"] if n % 10 != 2]


def test_a_function_that_waits_for_its_turn_ends_when_another_fails() -> None:
    def first() -> None:
        time.sleep(0.01)
        raise ValueError("first")

    def second() -> None:
        with steps.in_turn("a"):
            pass

    before = threading.active_count()
    with pytest.raises(ValueError, match="first"), Steps([first, second], at_once=2) as steps:
        steps.advance()
    assert threading.active_count() == before


def test_a_place_has_one_visit_a_step() -> None:
    def body() -> None:
        for _ in range(2):
            with steps.in_turn("a"):
                pass

    with pytest.raises(ValueError, match="a: visited twice"), Steps([body], at_once=1) as steps:
        steps.advance()
