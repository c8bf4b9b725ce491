"""From a plan to its file: chunks of rows, read, encoded and written by several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynquant.arrays import U8
from dynquant.conversion.layout import Layout, lay_out
from dynquant.conversion.output import PartFile, check_output
from dynquant.errors import ConvertError, PlanError
from dynquant.importance.audit import Importance
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.quants import codec
from dynquant.quants.search import Search
from dynquant.tensors import TensorSource, n_rows, row_bytes

CHUNK_BYTES = 1 << 20
"""Stored bytes of the rows that are encoded at a time: they stay in a core's cache from the read
to the encoder, and the tens of microseconds that Python adds are lost in the milliseconds of the
encoder."""

_REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class Progress:
    """How far a conversion is: bytes of tensors in the output, and weights."""

    bytes_done: int
    bytes_total: int
    weights_done: int
    weights_total: int


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
    progress: Callable[[Progress], None] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Write a plan's file, under its name only when it is complete.

    threads:     worker threads; None takes one for each CPU
    progress:    called in the calling thread, about ten times a second and at both ends
    chunk_bytes: stored bytes to read at a time, at least one row; the output does not depend on it

    A failure or an interrupt leaves `OUT.part` behind, which the next run replaces. Memory is one
    chunk and its blocks for each thread, and the keys.

    Raises PlanError for a plan that lacks something, ConvertError if the output cannot be written,
    CheckpointError if the model cannot be read, ImportanceError if the imatrix changed since it
    was, ConvertError with tensor and row for a weight that is not finite.
    """
    threads = default_threads() if threads is None else threads
    PlanError.raise_any((*plan.lacks, *plan.refusals))
    if threads < 1:
        raise ConvertError(f"threads is {threads}; at least 1 is needed")
    if len(plan.shards) > 1:
        raise ConvertError(
            f"{plan.recipe.path}: asks for {len(plan.shards)} shards (output: shard_size), and one"
            " file is all that is written; leave it out, and split the file by llama-gguf-split"
        )
    # A DYNQUANT_ISA that this CPU does not run is told before there is a file.
    codec.active_isa()
    layout = lay_out(plan)
    check_output(plan, out, layout.file_bytes, force=force)
    part = PartFile(out, layout.file_bytes)
    run = _Run(plan, layout, part, chunk_bytes)
    workers = [
        threading.Thread(target=run.work, name=f"dynquant-{i}", daemon=True) for i in range(threads)
    ]
    try:
        part.write(layout.header, 0)
        run.watch(workers, progress)
        part.finish()
    finally:
        # A second interrupt ends the wait for a worker; the file must not be closed under it.
        if not any(w.is_alive() for w in workers):
            part.close()


@dataclass(frozen=True)
class _Job:
    """Rows start..stop of one tensor, all of one matrix where its matrices differ in importance."""

    tensor: TensorPlan
    source: TensorSource
    start: int
    stop: int
    importance: Importance | None
    matrix: int


def _jobs(plan: Plan, chunk_bytes: int) -> Iterator[_Job]:
    """Yield the work, largest tensors first: at the end only small ones are left to wait for."""
    for tensor in sorted(plan.tensors, key=lambda t: t.n_weights, reverse=True):
        source = plan.sources[tensor.name].source
        importance = plan.importance.get(tensor.name)
        rows = n_rows(tensor.shape)
        together = rows if importance is None else rows // importance.n_matrices
        # Blocks that change their type are F32 on the way, which may be twenty times as long.
        is_decoded = not (source.stored.is_float or source.stored == tensor.type)
        row = 4 * tensor.n_per_row if is_decoded else row_bytes(source)
        step = max(1, chunk_bytes // row)
        for matrix, first in enumerate(range(0, rows, together)):
            end = first + together
            for start in range(first, end, step):
                yield _Job(tensor, source, start, min(start + step, end), importance, matrix)


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

    def __init__(self, plan: Plan, layout: Layout, part: PartFile, chunk_bytes: int) -> None:
        self._layout = layout
        self._part = part
        self._totals = (plan.tensor_bytes, plan.n_weights)
        self._lock = threading.Lock()
        self._jobs = _jobs(plan, chunk_bytes)
        self._search = Search(plan.effort)
        self._stopped = False
        self._failure: BaseException | None = None
        self._bytes_done = 0
        self._weights_done = 0

    def watch(
        self, workers: list[threading.Thread], progress: Callable[[Progress], None] | None
    ) -> None:
        """Run the workers to the end, report progress, and raise what went wrong."""
        try:
            self._report(progress)
            for w in workers:
                w.start()
            for w in workers:
                while w.is_alive():
                    w.join(_REPORT_SECONDS)
                    self._report(progress)
        finally:
            self._stopped = True
            for w in workers:
                if w.ident is not None:
                    w.join()
        if self._failure is not None:
            raise self._failure
        assert self._bytes_done == self._totals[0], "a run that ends without failure wrote all rows"
        self._report(progress)

    def work(self) -> None:
        """Do jobs until none is left or one has failed; the body of each thread."""
        stored, blocks = _Scratch(), _Scratch()
        try:
            while (job := self._next()) is not None:
                self._do(job, stored, blocks)
        except BaseException as e:  # raised again, once, in the thread that watches
            with self._lock:
                self._failure = self._failure or e
                self._stopped = True

    def _next(self) -> _Job | None:
        with self._lock:
            return None if self._stopped else next(self._jobs, None)

    def _do(self, job: _Job, stored: _Scratch, blocks: _Scratch) -> None:
        tensor, rows = job.tensor, job.stop - job.start
        row_size = tensor.type.row_size(tensor.n_per_row)
        taken = stored(rows * row_bytes(job.source))
        made = blocks(rows * row_size)
        job.source.read(job.start, job.stop, taken)
        importance = None if job.importance is None else job.importance.of(job.matrix)
        try:
            codec.encode_stored(
                taken,
                job.source.stored,
                tensor.n_per_row,
                tensor.type,
                made,
                importance,
                self._search,
            )
        except codec.NotFiniteError as e:
            raise ConvertError(
                f"tensor {tensor.name!r} (stored as {job.source.stored.name}): row"
                f" {job.start + e.row} holds a number that is not finite (NaN or infinity); the"
                " checkpoint is damaged or its training overflowed, take another copy of it"
            ) from e
        self._part.write(made.data, self._layout.position(tensor) + job.start * row_size)
        with self._lock:
            self._bytes_done += len(made)
            self._weights_done += rows * tensor.n_per_row

    def _report(self, progress: Callable[[Progress], None] | None) -> None:
        if progress is not None:
            with self._lock:
                done = self._bytes_done, self._weights_done
            progress(Progress(done[0], self._totals[0], done[1], self._totals[1]))
