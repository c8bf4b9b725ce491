"""From a plan to its files: chunks of rows, read, encoded and written by several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from dynquant.arrays import U8
from dynquant.conversion.digest import Digests
from dynquant.conversion.identity import refuse_written, versions_of
from dynquant.conversion.jobs import Done, Job, jobs
from dynquant.conversion.journal import Journal, journal_path
from dynquant.conversion.layout import Layout, lay_out
from dynquant.conversion.output import PartFiles, check_output, sync_folder
from dynquant.conversion.pagecache import PageCache
from dynquant.conversion.records import COMPLETE
from dynquant.conversion.resume import begin
from dynquant.conversion.threads import Worker, start
from dynquant.errors import ConvertError, PlanError
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.search import Search
from dynquant.tensors import row_bytes

CHUNK_BYTES = 1 << 20
"""Stored bytes of the rows that are encoded at a time: they stay in a core's cache from the read
to the encoder, and the tens of microseconds that Python adds are lost in the milliseconds of the
encoder."""

SYNC_SECONDS = 2.0
"""Between two times that what is written is put on the disk and noted in the journal: what a crash
costs, at most, besides the chunk that each thread is at."""

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


@dataclass(frozen=True)
class Converted:
    """A finished output.

    paths:   its files, one or several shards
    sha256:  of each file; xxh64: of each tensor's bytes, in the order of the plan, as
             llama-gguf-hash prints it
    resumed: bytes of tensors that an earlier run had written
    """

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    xxh64: tuple[str, ...]
    resumed: int


def default_threads() -> int:
    """Return the number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def convert_plan(
    plan: Plan,
    out: Path,
    *,
    threads: int | None = None,
    force: bool = False,
    restart: bool = False,
    progress: Callable[[Progress], None] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    sync_seconds: float = SYNC_SECONDS,
) -> Converted:
    """Write a plan's files, under their names only when all are complete.

    threads:      worker threads; None takes one for each CPU
    force:        replace files that exist
    restart:      begin anew where an earlier run was broken off, instead of going on
    progress:     called in the calling thread, about ten times a second and at both ends
    chunk_bytes:  stored bytes to read at a time, at least one row; the output does not depend on it
    sync_seconds: between two syncs of what is written

    A failure or an interrupt leaves `.part` files and a journal behind, from which the next run of
    the same conversion goes on. Of a model larger than half of the memory the page cache keeps
    nothing that is done with. Memory is one chunk and its blocks for each thread, blocks that
    wait to be hashed in order (64 MiB at most), and the keys.

    Raises PlanError for a plan that lacks something, ConvertError if the output cannot be written,
    or if what is there is of another conversion, CheckpointError if the model cannot be read,
    ImportanceError if the imatrix changed since it was, ConvertError with tensor and row for a
    weight that is not finite.
    """
    threads = default_threads() if threads is None else threads
    PlanError.raise_any((*plan.lacks, *plan.refusals))
    if threads < 1:
        raise ConvertError(f"threads is {threads}; at least 1 is needed")
    # A DYNQUANT_ISA that this CPU does not run is told before there is a file.
    codec.active_isa()
    sources = versions_of(plan)
    layout = lay_out(plan)
    parts = PartFiles(layout.paths(out), [file.file_bytes for file in layout.files])
    if not journal_path(out).exists():
        check_output(plan, out, layout, force=force)
    journal = Journal(out)
    run: _Run | None = None
    try:
        done = begin(plan, out, layout, parts, journal, force=force, restart=restart)
        n_read = sum(n_bytes for n_bytes, _ in sources.values())
        run = _Run(plan, layout, parts, journal, chunk_bytes, done, sync_seconds, n_read)
        run.watch(threads, progress)
        refuse_written(sources, versions_of(plan))
        parts.sync()
        journal.add([COMPLETE])
        parts.finish()
        journal.remove()
        sync_folder(out.parent)
        return run.converted()
    finally:
        # A second interrupt ends the wait for a thread; the files must not be closed under it.
        if run is None or not run.is_alive:
            parts.close()
            journal.close()


class _Scratch:
    """A buffer that is kept from job to job and grows to the largest."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def __call__(self, n_bytes: int) -> U8:
        """Return n_bytes of the buffer; their content is what it is."""
        if len(self._bytes) < n_bytes:
            self._bytes = np.empty(n_bytes, np.uint8)
        return self._bytes[:n_bytes]


class _Run:
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
        n_read: int,
    ) -> None:
        self._plan = plan
        self._layout = layout
        self._parts = parts
        self._journal = journal
        self._sync_seconds = sync_seconds
        self._totals = (plan.tensor_bytes, plan.n_weights)
        self._lock = threading.Lock()
        self._jobs: Iterator[Job] = jobs(plan, chunk_bytes, done)
        self._search = Search(plan.effort)
        self._digests = Digests(layout, len(plan.tensors))
        self._cache = PageCache(plan, n_read)
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

    def converted(self) -> Converted:
        """Return what was made, after `watch`."""
        digests = self._digests
        return Converted(
            self._parts.paths, tuple(digests.files()), tuple(digests.tensors()), self._resumed
        )

    def work(self) -> None:
        """Do jobs until none is left or one has failed; the body of each thread."""
        stored = _Scratch()
        try:
            while (job := self._next()) is not None:
                blocks = self._again(job) if job.done else None
                if blocks is None:
                    blocks = self._do(job, stored)
                self._digests.add(job, blocks)
        except BaseException as e:  # raised again, once, in the thread that watches
            self._fail(e)

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

    def _again(self, job: Job) -> U8 | None:
        """Return blocks of an earlier run; None where they are not as it left them."""
        blocks = np.empty(job.n_bytes, np.uint8)
        self._parts.read(job.tensor.shard, blocks.data, self._position(job))
        if job.done is None or xxhash.xxh3_64_intdigest(blocks.data) != job.done.checksum:
            return None
        with self._lock:
            self._resumed += len(blocks)
        self._count(job)
        return blocks

    def _do(self, job: Job, stored: _Scratch) -> U8:
        """Read, encode and write the rows of a job; return their blocks."""
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
        self._parts.write(tensor.shard, blocks.data, self._position(job))
        checksum = xxhash.xxh3_64_intdigest(blocks.data)
        with self._lock:
            self._unsaved.append(Done(job.index, job.start, job.stop, checksum))
        self._count(job)
        return blocks

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
                    self._cache.passed(self._digests.tensor)
                    self._parts.forget()
        except BaseException as e:  # raised in the thread that watches
            self._fail(e)

    def _report(self, progress: Callable[[Progress], None] | None) -> None:
        if progress is not None:
            with self._lock:
                done = self._bytes_done, self._weights_done, self._resumed
            progress(Progress(done[0], self._totals[0], done[1], self._totals[1], done[2]))
