"""A cache of computed parts of tensors, such as transposed matrices, that several threads share.

Some rows cannot be read without the whole matrix that they belong to. Each such part is computed
once, by the first thread that needs it, while the others wait for it. The cache has a bound for the
parts of all tensors together; `release_parts` empties it when a conversion ends.

A part lives in the `Parts` object of its source. The cache itself has only weak references, so the
parts of a model are freed with the model even if nothing releases them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MIN_PARTS = 4
"""The last parts used are kept whatever their size. Threads take the chunks of a tensor in order,
so most of them work on the same part or on the next. A part is computed again only if a thread
falls this many parts behind the others."""

MAX_BYTES = 1 << 23
"""8 MiB: more parts than MIN_PARTS are kept up to this size together. It keeps 64 matrices of the
heads of DeepSeek-R1 (128 KiB), of which a chunk spans eight."""


class _Part(Generic[T]):
    """One part: computed by the first thread that asks for it.

    users: threads that are using it or waiting for it
    """

    def __init__(self, parts: Parts[T], index: int, n_bytes: int) -> None:
        self.parts = weakref.ref(parts)
        self.index = index
        self.n_bytes = n_bytes
        self.users = 0
        self.value: T | None = None
        self.error: Exception | None = None
        self.lock = threading.Lock()
        # One reference object for the life of the part: it is the key in the cache.
        self.key: weakref.ref[_Part[Any]] = weakref.ref(self)

    def get(self, compute: Callable[[int], T]) -> T:
        """Return the value; wait if another thread is computing it.

        If `compute` fails, every waiting thread raises its exception. After an interrupt
        (KeyboardInterrupt) the next waiting thread computes the part instead.
        """
        with self.lock:
            if self.error is not None:
                raise self.error
            if self.value is None:
                try:
                    self.value = compute(self.index)
                except Exception as e:
                    self.error = e
                    raise
            return self.value


class _Cache:
    """The parts of all sources, least recently used first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: dict[weakref.ref[_Part[Any]], None] = {}

    def enter(self, parts: Parts[T], index: int, n_bytes: int) -> _Part[T]:
        """Return a part and count the calling thread as a user of it."""
        with self._lock:
            part = parts.kept.get(index)
            is_new = part is None
            if part is None:
                part = parts.kept[index] = _Part(parts, index, n_bytes)
            part.users += 1
            self._recent.pop(part.key, None)
            self._recent[part.key] = None
            if is_new:
                self._trim(MIN_PARTS, MAX_BYTES)
            return part

    def leave(self, part: _Part[Any]) -> None:
        """Count the calling thread as a user no longer; remove the part if computing it failed."""
        with self._lock:
            part.users -= 1
            if part.error is not None or (part.value is None and not part.users):
                self._drop(part)
            if not part.users:
                part.error = None  # its traceback refers to the part

    def release(self) -> None:
        """Remove all parts that no thread is using."""
        with self._lock:
            self._trim(0, 0)

    def _trim(self, min_parts: int, max_bytes: int) -> None:
        """Remove the least recently used parts that exceed both bounds and have no user."""
        alive = [part for key in self._recent if (part := key()) is not None]
        if len(alive) < len(self._recent):
            self._recent = {part.key: None for part in alive}
        left, n_bytes = len(alive), sum(part.n_bytes for part in alive)
        for part in alive:
            if left <= min_parts or n_bytes <= max_bytes:
                return
            if not part.users:
                self._drop(part)
                left, n_bytes = left - 1, n_bytes - part.n_bytes

    def _drop(self, part: _Part[Any]) -> None:
        self._recent.pop(part.key, None)
        parts = part.parts()
        if parts is not None and parts.kept.get(part.index) is part:
            del parts.kept[part.index]


_CACHE = _Cache()


class Parts(Generic[T]):
    """The parts of one source; a source has it as a field."""

    def __init__(self) -> None:
        self.kept: dict[int, _Part[T]] = {}

    @contextmanager
    def use(
        self, index: int, n_bytes: int, compute: Callable[[int], T]
    ) -> Generator[T, None, None]:
        """Give the part with a number; the cache does not remove it inside the `with` block.

        n_bytes: its size, for the bound of the cache
        compute: computes the part from its number; called without the lock of the cache

        Raises what `compute` raises; the next use calls it again.
        """
        part = _CACHE.enter(self, index, n_bytes)
        try:
            yield part.get(compute)
        finally:
            _CACHE.leave(part)


def release_parts() -> None:
    """Free all cached parts that no thread is using; the next read computes them again.

    A conversion calls this at its end. Other conversions that run at the same time may have to
    compute a part again, but never lose a part that they are reading.
    """
    _CACHE.release()
