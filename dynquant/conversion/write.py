"""Writes a plan's files: with several threads, resumable, hashed, checked, then renamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from dynquant.conversion.digest import Digests
from dynquant.conversion.engine import Engine, OneFile, Progress, reading_back
from dynquant.conversion.file_order import engine_in_file_order
from dynquant.conversion.finish import end, record_complete, rename, result_of
from dynquant.conversion.identity import refuse_written, versions_of
from dynquant.conversion.jobs import Done, Job, jobs
from dynquant.conversion.journal import Journal, journal_path
from dynquant.conversion.manifest import manifest_path
from dynquant.conversion.output import PartFiles, check_output
from dynquant.conversion.pagecache import PageCache
from dynquant.conversion.read_ahead import CHUNK, is_streamed
from dynquant.conversion.remote_sources import reading_ahead, sources_path
from dynquant.conversion.result import Result
from dynquant.conversion.resume import begin
from dynquant.conversion.reuse.decide import decide
from dynquant.conversion.reuse.old import Old, refuse_output
from dynquant.conversion.scope import Scope
from dynquant.conversion.second_look import SAMPLES, check_sample
from dynquant.conversion.source_hashes import SOURCE_HASHES, SourceDigests, SourceHashes
from dynquant.conversion.stages import EncodeStage, Sink, SourceStage
from dynquant.conversion.work import Work, work_of
from dynquant.errors import ConvertError, PlanError
from dynquant.part_cache import release_parts
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.encoder import CORE, Encoder
from dynquant.systems import system

SYNC_SECONDS = 0.5
"""Seconds between two syncs that the journal records. A crash costs the work since the last one,
and the rows that each thread was encoding."""


def default_threads() -> int:
    """Return the number of CPUs that this process may use."""
    return system().n_cpus()


def check_options(
    plan: Plan, threads: int | None, manifest: SourceHashes | None, verify_sample: int
) -> int:
    """Return the number of threads; raise PlanError or ConvertError for what is not possible."""
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
    return threads


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
    reuse: Old | None = None,
) -> Result:
    """Write a plan's files, under their final names only when all are complete.

    threads:      worker threads; None uses one for each CPU
    force:        replace existing files
    restart:      start over instead of resuming an interrupted run
    manifest:     write a manifest, with the source files' hashes from there; None writes none
    verify_sample: ranges of rows to encode again at the end and compare; 0 for none
    progress:     called in the calling thread, about ten times a second and at both ends; if
                  source files are copied one by one, a second time while the output is hashed
    encoder:      encodes the rows
    chunk_bytes:  bytes of rows to encode at a time, at least one row; None leaves it to the
                  encoder; the output does not depend on it
    sync_seconds: seconds between two syncs
    known_sources: hashes of source files that others computed, by number in `Work.source_files`, as
                  `SourceDigests.computed` returns them
    reuse:        an earlier output, whose tensors are copied where their bytes would be the same.
                  The source files are then hashed before anything is written

    A failure or an interrupt leaves `.part` files and a journal, from which the next run of the
    same conversion resumes. For models larger than half of RAM, finished source files are dropped
    from the page cache. Memory: for each thread one chunk and its blocks, at most 64 MiB of blocks
    that wait to be hashed in order, and the keys.

    Raises PlanError for a plan that cannot be carried out, ConvertError if the output cannot be
    written or the files there belong to another conversion, CheckpointError if the model cannot be
    read, ImportanceError if the imatrix changed since it was read, ConvertError with tensor and row
    for weights that are not finite and for rows that are encoded differently a second time.
    """
    threads = check_options(plan, threads, manifest, verify_sample)
    work = work_of(plan)
    layout = work.layout
    if reuse:
        refuse_output(reuse, layout.paths(out))
    versions = versions_of(work)
    parts = PartFiles(layout.paths(out), [file.file_bytes for file in layout.files])
    if not journal_path(out).exists():
        check_output(plan, out, work, force=force)
    reused = decide(plan, work, reuse, threads) if reuse else None
    writing = reused.work if reused else work
    if reused and manifest not in (None, "none"):
        # The manifest is that of a conversion without reuse: it has no hashes of another kind.
        kind = "sha256:" if manifest == "read" else "blake3:"
        hashes = {n: h for n, h in reused.hashes.items() if h.startswith(kind)}
        known_sources = {**hashes, **known_sources}
    journal = Journal(journal_path(out))
    engine: Engine[Job] | None = None
    try:
        more = reused.identity if reused else {}
        done = begin(plan, out, work, parts, journal, force=force, restart=restart, more=more)
        encode = EncodeStage(encoder)
        chunk = chunk_bytes or chunk_of(work, encoder)
        resumed_bytes: int | None = None
        if any(file.is_copied for file in work.source_files):
            sources = SourceDigests(work, manifest or "none", None, known=known_sources)
            with engine_in_file_order(
                writing, sources_path(out), parts, journal, done, sources, encode, chunk
            ) as engine:
                engine.run(threads, sync_seconds, progress)
            resumed_bytes = engine.resumed_bytes
            progress = reading_back(progress) if progress else None
            known_sources = sources.computed()
            done = journal.read()[1].by_tensor([t.n_rows for t in work.tensors])
        digests = Digests(work)
        sources = SourceDigests(
            work, manifest or "none", first_left(work, done), known=known_sources
        )
        sink = Sink(digests, parts, journal, PageCache(work, sources))
        scope = Scope.whole(writing)
        todo = jobs(scope, chunk, done)
        with reading_ahead(writing, todo) as ahead:
            source = SourceStage(writing, sources, ahead)
            engine = Engine([scope], ahead or todo, OneFile(source, encode, sink))
            engine.run(threads, sync_seconds, progress)
        refuse_written(versions, versions_of(work))
        check_sample(work, parts, verify_sample, encoder)
        result = result_of(
            plan,
            work,
            parts,
            digests,
            manifest=manifest_path(out) if manifest else None,
            resumed_bytes=engine.resumed_bytes if resumed_bytes is None else resumed_bytes,
            rounded=encode.rounded,
            reuse=reused,
        )
        record_complete(parts, journal)
        rename(result, out, work, parts, sources.sources())
        end(journal, out)
        return result
    finally:
        # A second interrupt ends the wait for a thread, which must not find its files closed.
        if engine is None or not engine.is_alive:
            parts.close()
            journal.close()
        release_parts()


def chunk_of(work: Work, encoder: Encoder) -> int:
    """Return the bytes of rows to encode at a time: more for files that are read by ranges."""
    return max(encoder.preferred_bytes, CHUNK) if is_streamed(work) else encoder.preferred_bytes


def first_left(work: Work, done: Mapping[int, Sequence[Done]]) -> int | None:
    """Return the number of the first tensor with rows that are still to be read, if any."""
    for tensor in work.tensors:
        if sum(d.stop - d.start for d in done.get(tensor.number, ())) < tensor.n_rows:
            return tensor.number
    return None
