"""The threads of one conversion: they read, encode, measure, write and hash chunks of rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from dynquant.arrays import U8
from dynquant.conversion.digest import Digests
from dynquant.conversion.jobs import Done, Job, jobs
from dynquant.conversion.journal import Journal
from dynquant.conversion.layout import Layout
from dynquant.conversion.output import PartFiles
from dynquant.conversion.pagecache import PageCache
from dynquant.conversion.source_hashes import PIECE, SourceDigests
from dynquant.conversion.threads import Worker, start
from dynquant.errors import ConvertError
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.error import NO_ERROR, ErrorSums, keeps_weights
from dynquant.quants.search import Search
from dynquant.tensors import row_bytes

_REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class Progress:
    """How far a conversion is: bytes of tensors in the output, and weights.

    bytes_resumed: of the bytes done, those that an earlier run had written
    """

    bytes_done: int
    bytes_total: int
    weights_done: int
    weights_total: int
    bytes_resumed: int = 0


class _Scratch:
    """A buffer that is kept from job to job and grows to the largest."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def __call__(self, n_bytes: int) -> U8:
        """Return n_bytes of the buffer; their content is what it is."""
        if len(self._bytes) < n_bytes:
            self._bytes = np.empty(n_bytes, np.uint8)
        return self._bytes[:n_bytes]


class Run:
    """One conversion: the jobs that are left, what is done, and the first failure."""

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        parts: PartFiles,
        journal: Journal,
        chunk_bytes: int,
        done: Mapping[int, Sequence[Done]],
        sync_seconds: float,
        sources: SourceDigests,
    ) -> None:
        self._plan = plan
        self._layout = layout
        self._parts = parts
        self._journal = journal
        self._sources = sources
        self._sync_seconds = sync_seconds
        self._totals = (plan.tensor_bytes, plan.n_weights)
        self._lock = threading.Lock()
        self._jobs: Iterator[Job] = jobs(plan, chunk_bytes, done)
        self._search = Search(plan.effort)
        self._digests = Digests(layout, len(plan.tensors))
        self._cache = PageCache(plan, sources)
        self._ended = threading.Event()
        self._stopped = False
        self._failure: BaseException | None = None
        self._bytes_done = 0
        self._weights_done = 0
        self._resumed = 0
        self._unsaved: list[Done] = []
        self._threads: list[Worker] = []

    @property
    def is_alive(self) -> bool:
        """Whether a thread of it still runs."""
        return any(t.is_alive for t in self._threads)

    def watch(self, n_workers: int, progress: Callable[[Progress], None] | None) -> None:
        """Run the workers to the end, report progress, and raise what went wrong."""
        workers = [Worker(self.work, f"dynquant-{i}") for i in range(n_workers)]
        saver = Worker(self._save, "dynquant-journal")
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
        assert self._bytes_done == self._totals[0], "a run that ends without failure wrote all rows"
        self._report(progress)

    @property
    def resumed(self) -> int:
        """Bytes of tensors that an earlier run had written."""
        return self._resumed

    @property
    def digests(self) -> Digests:
        """The hashes and errors of all that was written, after `watch`."""
        return self._digests

    def work(self) -> None:
        """Do jobs until none is left or one has failed; the body of each thread."""
        stored = _Scratch()
        try:
            while (job := self._next()) is not None:
                self._sources.arrive(job.index)
                self._hash_sources(stored)
                blocks, sums = self._again(job) or self._do(job, stored)
                self._digests.add(job, blocks, sums)
            self._sources.release()
            self._hash_sources(stored)
        except BaseException as e:  # raised again, once, in the thread that watches
            self._fail(e)

    def _hash_sources(self, scratch: _Scratch) -> None:
        """Hash what is due of the source files."""
        while not self._stopped and self._sources.step(scratch(PIECE)):
            pass

    def _next(self) -> Job | None:
        with self._lock:
            return None if self._stopped else next(self._jobs, None)

    def _fail(self, failure: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or failure
        self._stop()

    def _stop(self) -> None:
        self._stopped = True
        self._digests.stop()

    def _again(self, job: Job) -> tuple[U8, ErrorSums] | None:
        """Return blocks of an earlier run, and their errors; None where they are not as it left."""
        if job.done is None:
            return None
        blocks = np.empty(job.n_bytes, np.uint8)
        self._parts.read(job.tensor.shard, blocks.data, self._position(job))
        if xxhash.xxh3_64_intdigest(blocks.data) != job.done.checksum:
            return None
        with self._lock:
            self._resumed += len(blocks)
        self._count(job)
        return blocks, job.done.sums

    def _do(self, job: Job, stored: _Scratch) -> tuple[U8, ErrorSums]:
        """Read, encode and write the rows of a job; return their blocks and errors."""
        tensor = job.tensor
        taken = stored(job.n_rows * row_bytes(job.source))
        blocks = np.empty(job.n_bytes, np.uint8)
        job.source.read(job.start, job.stop, taken)
        importance = None if job.importance is None else job.importance.of(job.matrix)
        try:
            codec.encode_stored(
                taken,
                job.source.stored,
                tensor.n_per_row,
                tensor.type,
                blocks,
                importance,
                self._search,
            )
        except codec.NotFiniteError as e:
            raise ConvertError(
                f"tensor {tensor.name!r} (stored as {job.source.stored.name}): row"
                f" {job.start + e.row} holds a number that is not finite (NaN or infinity); the"
                " checkpoint is damaged or its training overflowed, take another copy of it"
            ) from e
        sums = NO_ERROR
        if not keeps_weights(job.source.stored, tensor.type):
            sums = codec.error_sums(
                taken, job.source.stored, tensor.n_per_row, tensor.type, blocks, importance
            )
        self._parts.write(tensor.shard, blocks.data, self._position(job))
        checksum = xxhash.xxh3_64_intdigest(blocks.data)
        with self._lock:
            self._unsaved.append(Done(job.index, job.start, job.stop, checksum, sums))
        self._count(job)
        return blocks, sums

    def _position(self, job: Job) -> int:
        file = self._layout.files[job.tensor.shard]
        return file.position(job.tensor) + job.start * job.row_size

    def _count(self, job: Job) -> None:
        with self._lock:
            self._bytes_done += job.n_bytes
            self._weights_done += job.n_rows * job.tensor.n_per_row

    def _save(self) -> None:
        """Note now and then which rows are safe, and once more at the end; the body of a thread."""
        is_last = False
        try:
            while not is_last:
                is_last = self._ended.wait(self._sync_seconds)
                with self._lock:
                    written, self._unsaved = self._unsaved, []
                if written:
                    self._parts.sync()
                    self._journal.add(written)
                if self._cache.is_scarce:
                    self._cache.passed(self._digests.reached)
                    self._parts.forget()
        except BaseException as e:  # raised in the thread that watches
            self._fail(e)

    def _report(self, progress: Callable[[Progress], None] | None) -> None:
        if progress is not None:
            with self._lock:
                done = self._bytes_done, self._weights_done, self._resumed
            progress(Progress(done[0], self._totals[0], done[1], self._totals[1], done[2]))
