"""Threads whose begin and end are known also when the main one is interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence


class Worker:
    """A thread that takes one step.

    Its end is an event: `Thread.join` of Python 3.11 and 3.12, once interrupted, takes a thread
    that runs for one that has ended (github.com/python/cpython/issues/90882).
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
        """Begin."""
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for its end, so many seconds at most; not for one that was never started."""
        if self.is_alive:
            self._ended.wait(seconds)

    def _run(self) -> None:
        try:
            self._step()
        finally:
            self._ended.set()


def start(workers: Sequence[Worker]) -> None:
    """Start threads, which leave signals to the others; signals wait until all are started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        for worker in workers:
            worker.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
