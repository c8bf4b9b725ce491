"""From a plan to its files: written by several threads, resumed, hashed, looked at again, named."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dynquant.conversion.converted import Converted
from dynquant.conversion.disk import sync_folder
from dynquant.conversion.engine import Progress, Run
from dynquant.conversion.identity import refuse_written, versions_of
from dynquant.conversion.jobs import Done
from dynquant.conversion.journal import Journal, journal_path
from dynquant.conversion.layout import Layout, lay_out
from dynquant.conversion.manifest import manifest_path, manifest_text
from dynquant.conversion.output import PartFiles, check_output
from dynquant.conversion.provenance import manifest_of
from dynquant.conversion.records import COMPLETE
from dynquant.conversion.resume import begin
from dynquant.conversion.sample import SAMPLES, check_sample
from dynquant.conversion.source_hashes import SourceDigests, SourceHashes
from dynquant.errors import ConvertError, PlanError
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.error import keeps_weights
from dynquant.tensors import n_rows

CHUNK_BYTES = 1 << 20
"""Stored bytes of the rows that are encoded at a time: they stay in a core's cache from the read
to the encoder, and the tens of microseconds that Python adds are lost in the milliseconds of the
encoder."""

SYNC_SECONDS = 0.5
"""Between two times that what is written is put on the disk and noted in the journal: what a crash
costs, besides the chunk that each thread is at and what is written while the disk syncs."""


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
    the same conversion goes on. Of a model larger than half of the memory the page cache keeps
    nothing that is done with. Memory is one chunk and its blocks for each thread, blocks that
    wait to be hashed in order (64 MiB at most), and the keys.

    Raises PlanError for a plan that lacks something, ConvertError if the output cannot be written,
    or if what is there is of another conversion, CheckpointError if the model cannot be read,
    ImportanceError if the imatrix changed since it was, ConvertError with tensor and row for a
    weight that is not finite, and for rows of the sample that are not the same a second time.
    """
    threads = default_threads() if threads is None else threads
    PlanError.raise_any((*plan.missing, *plan.refusals))
    if threads < 1:
        raise ConvertError(f"threads is {threads}; at least 1 is needed")
    # A DYNQUANT_ISA that this CPU does not run is told before there is a file.
    codec.active_isa()
    versions = versions_of(plan)
    layout = lay_out(plan)
    parts = PartFiles(layout.paths(out), [file.file_bytes for file in layout.files])
    if not journal_path(out).exists():
        check_output(plan, out, layout, force=force)
    journal = Journal(out)
    run: Run | None = None
    try:
        done = begin(plan, out, layout, parts, journal, force=force, restart=restart)
        sources = SourceDigests(plan, manifest or "none", _first_left(plan, done))
        run = Run(plan, layout, parts, journal, chunk_bytes, done, sync_seconds, sources)
        run.watch(threads, progress)
        refuse_written(versions, versions_of(plan))
        check_sample(plan, layout, parts, verify_sample)
        made = _converted(plan, parts, run)
        text = manifest and _manifest_text(plan, layout, made, sources)
        parts.sync()
        journal.add([COMPLETE])
        parts.finish(manifest_path(out), text)
        journal.remove()
        sync_folder(out.parent)
        return made
    finally:
        # A second interrupt ends the wait for a thread; the files must not be closed under it.
        if run is None or not run.is_alive:
            parts.close()
            journal.close()


def _first_left(plan: Plan, done: Mapping[int, Sequence[Done]]) -> int | None:
    """Return the number of the first tensor of which rows are to be read, if there is one."""
    for number, tensor in enumerate(plan.tensors):
        if sum(d.stop - d.start for d in done.get(number, ())) < n_rows(tensor.shape):
            return number
    return None


def _converted(plan: Plan, parts: PartFiles, run: Run) -> Converted:
    errors = (
        None
        if keeps_weights(plan.sources[tensor.name].source.stored, tensor.type)
        else sums.figures()
        for tensor, sums in zip(plan.tensors, run.digests.sums(), strict=True)
    )
    return Converted(
        parts.paths,
        tuple(run.digests.files()),
        tuple(run.digests.tensors()),
        tuple(errors),
        run.resumed,
    )


def _manifest_text(plan: Plan, layout: Layout, made: Converted, sources: SourceDigests) -> str:
    return manifest_text(manifest_of(plan, layout, made, sources.sources()))
