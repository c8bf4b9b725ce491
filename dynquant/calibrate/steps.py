"""Functions that run side by side, step by step: each until it pauses, then all wait.

Each function has a thread, so that it can pause anywhere, with all that it holds. A
limited number of them run at once, and those with lower numbers begin first. Which of them run
together changes no result: they share what they read, and what they add in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager


class _StopError(BaseException):
    """Unwinds a function that is not wanted any more."""


class Steps:
    """Functions that pause.

    Use as a context: leaving it ends all functions that have not returned.
    """

    def __init__(self, bodies: Sequence[Callable[[], None]], *, at_once: int) -> None:
        """Prepare functions, none of which runs yet; at_once: how many run at the same time."""
        self._at_once = at_once
        self._changed = threading.Condition()
        self._mine = threading.local()
        self._may_run = [False] * len(bodies)
        self._is_running = [False] * len(bodies)
        self._added: dict[Hashable, set[int]] = {}
        self._has_ended = [False] * len(bodies)
        self._errors: dict[int, BaseException] = {}
        self._is_stopped = False
        self._threads = [
            threading.Thread(target=self._run, args=(number, body), daemon=True)
            for number, body in enumerate(bodies)
        ]

    def __enter__(self) -> Steps:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def number(self) -> int:
        """The number of the function that asks."""
        return self._mine.number

    def advance(self) -> bool:
        """Let each function run until it pauses or returns; return whether any has not returned.

        Raises the error of the first function, in their order, that had one.
        """
        with self._changed:
            self._added.clear()
            self._may_run = [not ended for ended in self._has_ended]
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(self._may_run))
        if self._errors:
            raise self._errors[min(self._errors)]
        return not all(self._has_ended)

    def pause(self) -> None:
        """Wait for the next step; called by a function in its own thread."""
        number = self.number
        self._rest(number)
        self._wait(number)

    @contextmanager
    def in_turn(self, place: Hashable) -> Generator[None]:
        """Wait until the functions with lower numbers have been at a place in this step, or pause.

        A place that a function comes to twice in a step has no order: ValueError.
        """
        number = self.number
        with self._changed:
            added = self._added.setdefault(place, set())
            if number in added:
                raise ValueError(f"{place}: visited twice in a step")
            self._changed.wait_for(
                lambda: (
                    self._is_stopped
                    or all(n in added or not self._may_run[n] for n in range(number))
                )
            )
            if self._is_stopped:
                raise _StopError
        yield
        with self._changed:
            added.add(number)
            self._changed.notify_all()

    def _wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._is_admitted(number))
            if self._is_stopped:
                raise _StopError
            self._is_running[number] = True
            self._changed.notify_all()

    def _is_admitted(self, number: int) -> bool:
        """Return whether it is a function's turn to run: no lower one waits, and a slot is free."""
        return (
            self._may_run[number]
            and sum(self._is_running) < self._at_once
            and all(self._is_running[n] or not self._may_run[n] for n in range(number))
        )

    def _rest(self, number: int) -> None:
        with self._changed:
            self._may_run[number] = self._is_running[number] = False
            self._changed.notify_all()

    def _run(self, number: int, body: Callable[[], None]) -> None:
        self._mine.number = number
        try:
            self._wait(number)
            body()
        except _StopError:
            pass
        except BaseException as e:  # raised again where the steps are taken
            self._errors[number] = e
        finally:
            with self._changed:
                self._has_ended[number] = True
            self._rest(number)
