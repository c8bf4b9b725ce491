"""Writes a plan's files: with several threads, resumable, hashed, checked, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from dynquant.conversion.digest import Digests
from dynquant.conversion.disk import sync_folder
from dynquant.conversion.engine import Engine, Progress
from dynquant.conversion.identity import refuse_written, versions_of
from dynquant.conversion.jobs import Done, jobs
from dynquant.conversion.journal import Journal, journal_path
from dynquant.conversion.manifest import manifest_path, manifest_text
from dynquant.conversion.output import PartFiles, check_output
from dynquant.conversion.pagecache import PageCache
from dynquant.conversion.provenance import manifest_of
from dynquant.conversion.records import COMPLETE
from dynquant.conversion.result import Result
from dynquant.conversion.resume import begin
from dynquant.conversion.scope import Scope
from dynquant.conversion.second_look import SAMPLES, check_sample
from dynquant.conversion.source_hashes import SOURCE_HASHES, SourceDigests, SourceHashes
from dynquant.conversion.stages import EncodeStage, Sink, SourceStage
from dynquant.conversion.work import Work, work_of
from dynquant.errors import ConvertError, PlanError
from dynquant.feedback.decided import TensorGain
from dynquant.part_cache import release_parts
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.encoder import CORE, Encoder

SYNC_SECONDS = 0.5
"""Seconds between two syncs that the journal records. A crash costs the work since the last one,
and the rows that each thread was encoding."""


def default_threads() -> int:
    """Return the number of CPUs that this process may use."""
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
    encoder: Encoder = CORE,
    chunk_bytes: int | None = None,
    sync_seconds: float = SYNC_SECONDS,
    known_sources: Mapping[int, str] = MappingProxyType({}),
) -> Result:
    """Write a plan's files, under their final names only when all are complete.

    threads:      worker threads; None uses one for each CPU
    force:        replace existing files
    restart:      start over instead of resuming an interrupted run
    manifest:     write a manifest, with the source files' hashes from there; None writes none
    verify_sample: ranges of rows to encode again at the end and compare; 0 for none
    progress:     called in the calling thread, about ten times a second and at both ends
    encoder:      encodes the rows
    chunk_bytes:  bytes of rows to encode at a time, at least one row; None leaves it to the
                  encoder; the output does not depend on it
    sync_seconds: seconds between two syncs
    known_sources: hashes of source files that others computed, by number in `Work.source_files`, as
                  `SourceDigests.computed` returns them

    A failure or an interrupt leaves `.part` files and a journal, from which the next run of the
    same conversion resumes. For models larger than half of RAM, finished source files are dropped
    from the page cache. Memory: for each thread one chunk and its blocks, at most 64 MiB of blocks
    that wait to be hashed in order, and the keys.

    Raises PlanError for a plan that cannot be carried out, ConvertError if the output cannot be
    written or the files there belong to another conversion, CheckpointError if the model cannot be
    read, ImportanceError if the imatrix changed since it was read, ConvertError with tensor and row
    for weights that are not finite and for rows that are encoded differently a second time.
    """
    threads = default_threads() if threads is None else threads
    PlanError.raise_any((*plan.missing, *plan.refusals))
    if threads < 1:
        raise ConvertError(f"threads is {threads}; at least 1 is needed")
    if verify_sample < 0:
        raise ConvertError(f"verify_sample is {verify_sample}; it must not be negative")
    if manifest not in (None, *SOURCE_HASHES):
        choices = ", ".join(SOURCE_HASHES)
        raise ConvertError(f"manifest={manifest!r} is not supported; use {choices} or False")
    # A DYNQUANT_ISA that this CPU does not support is an error before there is a file.
    codec.active_isa()
    work = work_of(plan)
    layout = work.layout
    versions = versions_of(work)
    parts = PartFiles(layout.paths(out), [file.file_bytes for file in layout.files])
    if not journal_path(out).exists():
        check_output(plan, out, work, force=force)
    journal = Journal(journal_path(out))
    engine: Engine | None = None
    try:
        done = begin(plan, out, work, parts, journal, force=force, restart=restart)
        digests = Digests(work)
        sources = SourceDigests(
            work, manifest or "none", _first_left(work, done), known=known_sources
        )
        sink = Sink(digests, parts, journal, PageCache(work, sources))
        encode = EncodeStage(encoder)
        scope = Scope.whole(work)
        engine = Engine(
            scope,
            jobs(scope, chunk_bytes or encoder.preferred_bytes, done),
            SourceStage(work, sources),
            encode,
            sink,
        )
        engine.run(threads, sync_seconds, progress)
        refuse_written(versions, versions_of(work))
        check_sample(work, parts, verify_sample, encoder)
        measured = zip(work.tensors, digests.sums(), strict=True)
        result = Result(
            plan=plan,
            paths=parts.paths,
            file_bytes=parts.sizes,
            sha256=tuple(digests.files()),
            xxh64=dict(zip((t.name for t in work.tensors), digests.tensors(), strict=True)),
            errors={t.name: sums.figures() for t, sums in measured if not t.keeps_weights},
            resumed_bytes=engine.resumed_bytes,
            manifest=manifest_path(out) if manifest else None,
            rounded={name: n for name, n in encode.rounded.items() if n},
            gains=gains_of(work),
        )
        text = manifest and manifest_text(manifest_of(result, layout, sources.sources()))
        parts.sync()
        journal.add([COMPLETE])
        parts.finish(manifest_path(out), text)
        journal.remove()
        sync_folder(out.parent)
        return result
    finally:
        # A second interrupt ends the wait for a thread, which must not find its files closed.
        if engine is None or not engine.is_alive:
            parts.close()
            journal.close()
        release_parts()


def gains_of(work: Work) -> dict[str, TensorGain]:
    """Return what error feedback gained, by tensor; of a resumed run, too."""
    return {
        t.name: work.decisions.of_tensor(t.fed)
        for t in work.tensors
        if t.fed is not None and work.decisions is not None
    }


def _first_left(work: Work, done: Mapping[int, Sequence[Done]]) -> int | None:
    """Return the number of the first tensor with rows that are still to be read, if any."""
    for tensor in work.tensors:
        if sum(d.stop - d.start for d in done.get(tensor.number, ())) < tensor.n_rows:
            return tensor.number
    return None
