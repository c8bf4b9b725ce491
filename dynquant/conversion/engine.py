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
from dynquant.conversion.identity import identity_of
from dynquant.conversion.jobs import Done, Job, jobs
from dynquant.conversion.journal import COMPLETE, Journal, journal_path, refuse_changed
from dynquant.conversion.layout import Layout, lay_out
from dynquant.conversion.manifest import manifest_path, manifest_text
from dynquant.conversion.output import PartFiles, check_output, sync_folder
from dynquant.conversion.provenance import Figures, manifest_of
from dynquant.conversion.sample import SAMPLES, check_sample
from dynquant.conversion.sources import SourceDigests, SourceHashes
from dynquant.errors import ConvertError, PlanError
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.error import NO_ERROR, ErrorSums, TensorError, keeps_weights
from dynquant.quants.search import Search
from dynquant.tensors import n_rows, row_bytes

CHUNK_BYTES = 1 << 20
"""Stored bytes of the rows that are encoded at a time: they stay in a core's cache from the read
to the encoder, and the tens of microseconds that Python adds are lost in the milliseconds of the
encoder."""

SYNC_SECONDS = 2.0
"""Between two times that what is written is put on the disk and noted in the journal: what a crash
costs, at most, besides the chunk that each thread is at."""

_REPORT_SECONDS = 0.1

_ENCODERS_PER_HASHER = 4
"""Threads that encode for each that hashes source files: sha256 takes 1.7 GB/s of stored weights
(SHA-NI), and an encoder of Q8_0 0.5 GB/s."""


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
    errors:  what each tensor lost, in the same order; None where its weights are as they were
    resumed: bytes of tensors that an earlier run had written
    """

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    xxh64: tuple[str, ...]
    errors: tuple[TensorError | None, ...]
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
    manifest: SourceHashes | None = None,
    verify_sample: int = SAMPLES,
    progress: Callable[[Progress], None] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    sync_seconds: float = SYNC_SECONDS,
) -> Converted:
    """Write a plan's files, under their names only when all are complete.

    threads:      worker threads; None takes one for each CPU
    force:        replace files that exist
    restart:      begin anew where an earlier run was broken off, instead of going on
    manifest:     write one, with hashes of the source files that are found so; None for none
    verify_sample: ranges of rows that are encoded again at the end and compared; 0 for none
    progress:     called in the calling thread, about ten times a second and at both ends
    chunk_bytes:  stored bytes to read at a time, at least one row; the output does not depend on it
    sync_seconds: between two syncs of what is written

    A failure or an interrupt leaves `.part` files and a journal behind, from which the next run of
    the same conversion goes on. Memory is one chunk and its blocks for each thread, blocks that
    wait to be hashed in order (64 MiB at most), and the keys.

    Raises PlanError for a plan that lacks something, ConvertError if the output cannot be written,
    or if what is there is of another conversion, CheckpointError if the model cannot be read,
    ImportanceError if the imatrix changed since it was, ConvertError with tensor and row for a
    weight that is not finite, and for rows of the sample that are not the same a second time.
    """
    threads = default_threads() if threads is None else threads
    PlanError.raise_any((*plan.lacks, *plan.refusals))
    if threads < 1:
        raise ConvertError(f"threads is {threads}; at least 1 is needed")
    # A DYNQUANT_ISA that this CPU does not run is told before there is a file.
    codec.active_isa()
    layout = lay_out(plan)
    parts = PartFiles(layout.paths(out), [file.file_bytes for file in layout.files])
    is_new = not journal_path(out).exists()
    if is_new:
        check_output(plan, out, layout, force=force)
    journal = Journal(out)
    workers: list[threading.Thread] = []
    try:
        try:
            done = _begin(plan, out, layout, parts, journal, force=force, restart=restart)
        except BaseException:
            if is_new:
                parts.remove()
                journal.remove()
            raise
        sources = SourceDigests(plan, manifest or "none", _first_left(plan, done))
        run = _Run(plan, layout, parts, journal, chunk_bytes, done, sync_seconds, sources)
        workers += [
            threading.Thread(target=run.work, name=f"dynquant-{i}", daemon=True)
            for i in range(threads)
        ]
        run.watch(workers, progress)
        check_sample(plan, layout, parts, verify_sample)
        made = run.converted()
        text = manifest and _manifest_text(plan, layout, made, sources)
        parts.sync()
        journal.add([COMPLETE])
        parts.finish(manifest_path(out), text)
        journal.remove()
        sync_folder(out.parent)
        return made
    finally:
        # A second interrupt ends the wait for a worker; the file must not be closed under it.
        if not any(w.is_alive() for w in workers):
            parts.close()
            journal.close()


def _begin(
    plan: Plan,
    out: Path,
    layout: Layout,
    parts: PartFiles,
    journal: Journal,
    *,
    force: bool,
    restart: bool,
) -> dict[int, list[Done]]:
    """Make the files, or open those of an earlier run; return the rows that are there.

    What the journal tells is there, since a crash takes nothing away that was synced; the checksums
    are looked at all the same, when the rows are hashed.
    """
    before, records = journal.read()
    is_complete = COMPLETE in records
    if not is_complete or restart:
        check_output(plan, out, layout, force=force)
    identity = identity_of(plan, layout)
    if before is not None and records and not restart:
        refuse_changed(journal.path, before, identity)
        if parts.are_there(named=is_complete):
            parts.open()
            return _by_tensor(records, plan)
    parts.make()
    for number, file in enumerate(layout.files):
        parts.write(number, file.header, 0)
    parts.sync()
    journal.begin(identity)
    sync_folder(out.parent)
    return {}


def _by_tensor(records: Sequence[Done], plan: Plan) -> dict[int, list[Done]]:
    """Return the rows that are there by tensor, in order; what overlaps or reaches out is left."""
    found: dict[int, list[Done]] = {}
    for record in sorted(records, key=lambda r: (r.tensor, r.start)):
        if record.tensor >= len(plan.tensors) or record.start >= record.stop:
            continue
        those = found.setdefault(record.tensor, [])
        if record.stop > n_rows(plan.tensors[record.tensor].shape):
            continue
        if not those or those[-1].stop <= record.start:
            those.append(record)
    return found


def _first_left(plan: Plan, done: Mapping[int, Sequence[Done]]) -> int | None:
    """Return the number of the first tensor of which rows are to be read, if there is one."""
    for number, tensor in enumerate(plan.tensors):
        if sum(d.stop - d.start for d in done.get(number, ())) < n_rows(tensor.shape):
            return number
    return None


def _manifest_text(plan: Plan, layout: Layout, made: Converted, sources: SourceDigests) -> str:
    errors: Sequence[Figures | None] | None = getattr(made, "errors", None)
    return manifest_text(manifest_of(plan, layout, made, sources.sources(), errors))


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
        self._ended = threading.Event()
        self._stopped = False
        self._failure: BaseException | None = None
        self._bytes_done = 0
        self._weights_done = 0
        self._resumed = 0
        self._unsaved: list[Done] = []

    def watch(
        self, workers: list[threading.Thread], progress: Callable[[Progress], None] | None
    ) -> None:
        """Run the workers to the end, report progress, and raise what went wrong."""
        saver = threading.Thread(target=self._save, name="dynquant-journal", daemon=True)
        hashers = [
            threading.Thread(target=self._hash_sources, name=f"dynquant-hash-{i}", daemon=True)
            for i in range(-(-len(workers) // _ENCODERS_PER_HASHER))
        ]
        try:
            self._report(progress)
            for w in (*workers, *hashers, saver):
                w.start()
            for w in (*workers, *hashers):
                while w.is_alive():
                    w.join(_REPORT_SECONDS)
                    self._report(progress)
                    if not any(worker.is_alive() for worker in workers):
                        self._sources.release()
        finally:
            self._stop()
            for w in (*workers, *hashers):
                if w.ident is not None:
                    w.join()
            self._ended.set()
            if saver.ident is not None:
                saver.join()
        if self._failure is not None:
            raise self._failure
        assert self._bytes_done == self._totals[0], "a run that ends without failure wrote all rows"
        self._report(progress)

    def converted(self) -> Converted:
        """Return what was made, after `watch`."""
        digests, plan = self._digests, self._plan
        errors = (
            None
            if keeps_weights(plan.sources[tensor.name].source.stored, tensor.type)
            else sums.figures()
            for tensor, sums in zip(plan.tensors, digests.sums(), strict=True)
        )
        return Converted(
            self._parts.paths,
            tuple(digests.files()),
            tuple(digests.tensors()),
            tuple(errors),
            self._resumed,
        )

    def work(self) -> None:
        """Do jobs until none is left or one has failed; the body of each thread."""
        stored = _Scratch()
        try:
            while (job := self._next()) is not None:
                blocks, sums = self._again(job) or self._do(job, stored)
                self._digests.add(job, blocks, sums)
        except BaseException as e:  # raised again, once, in the thread that watches
            self._fail(e)

    def _hash_sources(self) -> None:
        """Hash files that are read; the body of some threads."""
        try:
            self._sources.work()
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
        self._sources.stop()

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
        except BaseException as e:  # raised in the thread that watches
            self._fail(e)

    def _report(self, progress: Callable[[Progress], None] | None) -> None:
        if progress is not None:
            with self._lock:
                done = self._bytes_done, self._weights_done, self._resumed
            progress(Progress(done[0], self._totals[0], done[1], self._totals[1], done[2]))
