"""The threads of one conversion: they take jobs through the stages until none is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from dynquant.conversion.estimate import Estimate
from dynquant.conversion.jobs import Job
from dynquant.conversion.scope import Scope
from dynquant.conversion.stages import EncodeStage, Scratch, Sink, SourceStage
from dynquant.conversion.threads import Worker, start

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class Progress:
    """How far a conversion is: bytes of tensors in the output, and weights.

    bytes_resumed: of the bytes done, those that an earlier run had written
    seconds_left:  estimated from the types that are left; None before the first weights are done
    """

    bytes_done: int
    bytes_total: int
    weights_done: int
    weights_total: int
    bytes_resumed: int = 0
    seconds_left: float | None = None


def reading_back(progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return a callback for rows that this run wrote, in another order or in parts, and now reads.

    They are no rows of an earlier run.
    """
    return lambda now: progress(replace(now, bytes_resumed=0))


class Counts(Protocol):
    """Counts a job that is written."""

    def __call__(self, job: Job, seconds: float, *, is_resumed: bool) -> None:
        """Count a job; seconds: what a thread took, waits included."""
        ...


class Route(Protocol[T_contra]):
    """The way of work through the stages; callable from several threads at once."""

    def take(
        self,
        work: T_contra,
        scratch: Scratch,
        is_stopped: Callable[[], bool],
        count: Counts,
    ) -> None:
        """Do work: a job, or several jobs of the same rows."""
        ...

    def finish(self, scratch: Scratch, is_stopped: Callable[[], bool]) -> None:
        """Do what is left after all rows were read."""
        ...

    def save(self) -> None:
        """Record what is safe on the disk."""
        ...

    def stop(self) -> None:
        """Wake waiting threads; no more work will come."""
        ...


class OneFile:
    """The way of a job through the stages of one conversion."""

    def __init__(self, source: SourceStage, encode: EncodeStage, sink: Sink) -> None:
        self._source = source
        self._encode = encode
        self._sink = sink

    def take(
        self, work: Job, scratch: Scratch, is_stopped: Callable[[], bool], count: Counts
    ) -> None:
        """Take one job through the stages."""
        started = time.monotonic()
        self._source.arrive(work.tensor.number, scratch, is_stopped)
        encoded = self._sink.written_before(work)
        is_resumed = encoded is not None
        if encoded is None:
            encoded = self._encode.encode(work, self._source.read(work, scratch))
            self._sink.write(work, encoded)
        count(work, time.monotonic() - started, is_resumed=is_resumed)
        self._sink.digests.add(work, encoded)

    def finish(self, scratch: Scratch, is_stopped: Callable[[], bool]) -> None:
        """Hash the rest of the source files."""
        self._source.finish(scratch, is_stopped)

    def save(self) -> None:
        """Record in the journal which rows are safe on the disk."""
        self._sink.save()

    def stop(self) -> None:
        """Wake threads that wait to hash."""
        self._sink.digests.stop()


class Engine(Generic[T]):
    """Does work in several threads, keeps count, and stops at the first failure."""

    def __init__(self, scopes: Sequence[Scope], work: Iterator[T], route: Route[T]) -> None:
        """Make an engine.

        scopes: the rows that all work together writes, of each output
        """
        self._totals = (sum(s.n_bytes for s in scopes), sum(s.n_weights for s in scopes))
        self._left = work
        self._route = route
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._stopped = False
        self._failure: BaseException | None = None
        self._bytes_done = 0
        self._weights_done = 0
        self._resumed = 0
        self._estimate = Estimate(*scopes)
        self._threads: list[Worker] = []

    @property
    def is_alive(self) -> bool:
        """Whether one of its threads still runs."""
        return any(t.is_alive for t in self._threads)

    @property
    def resumed_bytes(self) -> int:
        """Bytes of tensors that an earlier run had written."""
        return self._resumed

    def run(
        self, n_workers: int, sync_seconds: float, progress: Callable[[Progress], None] | None
    ) -> None:
        """Do all work, report progress, and raise the first failure.

        sync_seconds: between two records in the journal
        """
        workers = [Worker(self._work, f"dynquant-{i}") for i in range(n_workers)]
        saver = Worker(lambda: self._save(sync_seconds), "dynquant-journal")
        self._threads = [*workers, saver]
        try:
            self._report(progress)
            start(self._threads)
            for w in workers:
                while w.is_alive:
                    w.wait(_REPORT_SECONDS)
                    self._report(progress)
        finally:
            self._stop()
            for w in workers:
                w.wait()
            self._ended.set()
            saver.wait()
        if self._failure is not None:
            raise self._failure
        assert self._bytes_done == self._totals[0], "a run without failure writes all rows"
        self._report(progress)

    def _work(self) -> None:
        """Do work until none is left or some has failed; the body of each worker."""
        scratch = Scratch()
        try:
            while (work := self._next()) is not None:
                self._route.take(work, scratch, self._is_stopped, self._count)
            self._route.finish(scratch, self._is_stopped)
        except BaseException as e:  # raised again, once, in the thread that called `run`
            self._fail(e)

    def _save(self, sync_seconds: float) -> None:
        """Record now and then which rows are safe, and once more at the end; a thread's body."""
        is_last = False
        try:
            while not is_last:
                is_last = self._ended.wait(sync_seconds)
                self._route.save()
        except BaseException as e:  # raised in the thread that called `run`
            self._fail(e)

    def _next(self) -> T | None:
        with self._lock:
            return None if self._stopped else next(self._left, None)

    def _count(self, job: Job, seconds: float, *, is_resumed: bool) -> None:
        name = job.tensor.type.name
        with self._lock:
            self._bytes_done += job.n_bytes
            self._weights_done += job.n_weights
            if is_resumed:
                self._resumed += job.n_bytes
                self._estimate.skip(name, job.n_weights)
            else:
                self._estimate.count(name, job.n_weights, seconds)

    def _fail(self, failure: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or failure
        self._stop()

    def _stop(self) -> None:
        self._stopped = True
        self._route.stop()

    def _is_stopped(self) -> bool:
        return self._stopped

    def _report(self, progress: Callable[[Progress], None] | None) -> None:
        if progress is not None:
            n_bytes, n_weights = self._totals
            with self._lock:
                now = Progress(
                    self._bytes_done,
                    n_bytes,
                    self._weights_done,
                    n_weights,
                    self._resumed,
                    self._estimate.seconds_left(max(1, len(self._threads) - 1)),
                )
            progress(now)
