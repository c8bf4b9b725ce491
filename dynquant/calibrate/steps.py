"""Functions that run side by side, step by step: each until it pauses, then all wait.

Each function has a thread, so that it can pause anywhere, with all that it holds. A
limited number of them run at once. Which of them run together changes no result, because they
share nothing but what they read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


class _StopError(BaseException):
    """Unwinds a function that is not wanted any more."""


class Steps:
    """Functions that pause.

    Use as a context: leaving it ends all functions that have not returned.
    """

    def __init__(self, bodies: Sequence[Callable[[], None]], *, at_once: int) -> None:
        """Prepare functions, none of which runs yet; at_once: how many run at the same time."""
        self._slots = threading.Semaphore(at_once)
        self._changed = threading.Condition()
        self._mine = threading.local()
        self._may_run = [False] * len(bodies)
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
            self._may_run = [not ended for ended in self._has_ended]
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(self._may_run))
        if self._errors:
            raise self._errors[min(self._errors)]
        return not all(self._has_ended)

    def pause(self) -> None:
        """Wait for the next step; called by a function in its own thread."""
        number = self.number
        self._slots.release()
        with self._changed:
            self._may_run[number] = False
            self._changed.notify_all()
        self._wait(number)

    def _wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._may_run[number] or self._is_stopped)
        self._slots.acquire()
        if self._is_stopped:
            raise _StopError

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
            self._slots.release()
            with self._changed:
                self._may_run[number] = False
                self._has_ended[number] = True
                self._changed.notify_all()
