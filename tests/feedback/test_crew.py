"""Threads that wait for a result help to make it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from dynquant.feedback.crew import Crew

Run = Callable[[Iterable[Callable[[], object]]], None]


def test_all_threads_work_and_get_one_result() -> None:
    n = 4
    together = threading.Barrier(n, timeout=20)
    order: list[int] = []

    def make(run: Run) -> int:
        run([together.wait] * n)  # passes only if n threads work at the same time
        order.append(1)
        run([lambda: order.append(2)] * 3)
        order.append(3)
        return 7

    crew = Crew(make)
    with ThreadPoolExecutor(n) as pool:
        assert [f.result() for f in [pool.submit(crew.result) for _ in range(n)]] == [7] * n
    assert order == [1, 2, 2, 2, 3]
    assert crew.result() == 7


def test_what_made_the_result_is_freed() -> None:
    class Large:
        pass

    large = Large()
    seen = weakref.ref(large)
    crew = Crew(lambda _, its=large: id(its))
    del large
    assert seen() is not None
    crew.result()
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("in_task", [False, True])
def test_a_failure_reaches_all_threads(in_task: bool) -> None:
    def fail() -> None:
        raise KeyError("broken")

    def make(run: Run) -> None:
        run([fail, lambda: None])
        if not in_task:
            fail()

    crew = Crew(make)
    with ThreadPoolExecutor(3) as pool:
        for f in [pool.submit(crew.result) for _ in range(3)]:
            with pytest.raises(KeyError, match="broken"):
                f.result()
