"""Threads whose start and end stay known when the main thread is interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from dynquant.systems import system


class Worker:
    """A thread that runs one function.

    Its end is an event: `Thread.join` of Python 3.11 and 3.12, once interrupted, reports a running
    thread as ended (github.com/python/cpython/issues/90882).
    """

    def __init__(self, step: Callable[[], object], name: str) -> None:
        self._step = step
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._thread.ident is not None and not self._ended.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for its end, at most this many seconds; return at once if it was never started."""
        if self.is_alive:
            self._ended.wait(seconds)

    def _run(self) -> None:
        try:
            self._step()
        finally:
            self._ended.set()


def start(workers: Sequence[Worker]) -> None:
    """Start threads that do not handle signals; signals wait until all are started."""
    with system().signals_held():
        for worker in workers:
            worker.start()
