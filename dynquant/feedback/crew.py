"""Threads that wait for a result help to make it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
Task = Callable[[], object]
Make = Callable[[Callable[[Iterable[Task]], None]], T]


class Crew(Generic[T]):
    """One result, which the first thread that asks makes in steps of many tasks.

    make: called once, with a function that runs tasks, in any order, and returns when all are done
    """

    def __init__(self, make: Make[T]) -> None:
        self._make: Make[T] | None = make
        self._changed = threading.Condition()
        self._tasks: deque[Task] = deque()
        self._n_running = 0
        self._result: Future[T] = Future()

    def result(self) -> T:
        """Return the result; make it, or help those who do.

        Raises what `make` or one of the tasks raises.
        """
        with self._changed:
            make, self._make = self._make, None  # what it holds is freed after the first use
        if make is not None:
            try:
                self._result.set_result(make(self._run))
            except BaseException as e:
                self._result.set_exception(e)
            with self._changed:
                self._changed.notify_all()
        else:
            self._work_until(self._result.done)
        return self._result.result()

    def _run(self, tasks: Iterable[Task]) -> None:
        failures: list[BaseException] = []

        def guarded(task: Task) -> None:
            try:
                task()
            except BaseException as e:
                failures.append(e)

        with self._changed:
            self._tasks.extend(lambda task=task: guarded(task) for task in tasks)
            self._changed.notify_all()
        self._work_until(lambda: not self._n_running)
        if failures:
            raise failures[0]

    def _work_until(self, is_over: Callable[[], bool]) -> None:
        """Do tasks; return when there are none and `is_over`, which is asked under the lock."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or is_over())
                if not self._tasks:
                    return
                task = self._tasks.popleft()
                self._n_running += 1
            task()
            with self._changed:
                self._n_running -= 1
                self._changed.notify_all()
