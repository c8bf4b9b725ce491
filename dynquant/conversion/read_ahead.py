"""Rows of the next jobs, read before they are needed: requests to another machine take long.

Jobs are read exactly as without it, by threads of a pool, so that no byte is requested in vain.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from dynquant.arrays import U8
from dynquant.conversion.jobs import Job
from dynquant.conversion.work import Work

READERS = 8
"""Jobs that are read at once."""

AHEAD = 16
"""Jobs that are read or waiting for the encoders, at most."""

CHUNK = 1 << 22
"""Bytes of a job's rows as the encoder works on them, of files that are read by ranges: at most
AHEAD times as many are in memory."""


class ReadAhead:
    """An iterator of jobs, which reads the rows of those that follow; used by several threads."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(READERS, "dynquant-read")
        self._lock = threading.Lock()
        self._next: deque[Job] = deque()
        self._rows: dict[int, Future[U8]] = {}

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        with self._lock:
            while len(self._next) < AHEAD and (job := next(self._jobs, None)) is not None:
                self._next.append(job)
                if job.done is None:
                    self._rows[job.number] = self._pool.submit(read_rows, job)
            if not self._next:
                raise StopIteration
            return self._next.popleft()

    def rows(self, job: Job) -> U8:
        """Return the rows of a job, uint8 [n_rows * stored_row_size]; each job once.

        Raises what reading them raised.
        """
        with self._lock:
            future = self._rows.pop(job.number, None)
        return read_rows(job) if future is None else future.result()

    def close(self) -> None:
        """Stop reading; waits for the requests that have been sent."""
        self._pool.shutdown(cancel_futures=True)


def read_rows(job: Job) -> U8:
    """Return the rows of a job as they are stored."""
    rows = np.empty(job.n_rows * job.tensor.stored_row_size, np.uint8)
    job.tensor.source.read(job.start, job.stop, rows)
    return rows


def is_streamed(work: Work) -> bool:
    """Return whether rows are read from another machine by ranges."""
    return any(file.stored.is_remote and not file.is_copied for file in work.source_files)
