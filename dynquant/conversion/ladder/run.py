"""Writes several outputs of one model in one pass over its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dynquant.conversion.digest import Digests
from dynquant.conversion.engine import Engine, Progress
from dynquant.conversion.finish import end, record_complete, rename, result_of
from dynquant.conversion.identity import refuse_written, versions_of
from dynquant.conversion.jobs import jobs
from dynquant.conversion.ladder.common import Common, common_of
from dynquant.conversion.ladder.kept import kept
from dynquant.conversion.ladder.outputs import Output, begin_all, check_all
from dynquant.conversion.ladder.route import ManyFiles, Reached
from dynquant.conversion.ladder.steps import Step, steps
from dynquant.conversion.manifest import Source, manifest_path
from dynquant.conversion.pagecache import PageCache
from dynquant.conversion.result import Result
from dynquant.conversion.scope import Scope
from dynquant.conversion.second_look import SAMPLES, check_sample
from dynquant.conversion.source_hashes import SourceDigests, SourceHashes
from dynquant.conversion.stages import EncodeStage, Sink, SourceStage
from dynquant.conversion.work import Work, work_of
from dynquant.conversion.write import SYNC_SECONDS, check_options, default_threads, first_left
from dynquant.errors import ConvertError, PlanError, Problems
from dynquant.feedback.factors import Factors
from dynquant.part_cache import release_parts
from dynquant.plan.plan import Plan
from dynquant.quants.encoder import CORE, Encoder


def convert_ladder(
    plans: Sequence[tuple[Plan, Path]],
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
) -> list[Result]:
    """Write the files of several plans of one model, each row of which is read once.

    plans: each with its output; made of one loaded model, else rows are read for each
    verify_sample: ranges of rows of each output to encode again at the end
    progress: called with the bytes and weights of all outputs together
    The others are as in `convert_plan`, which says what is raised.

    Returns the results in the order of the plans. Whatever can be checked is checked for all
    outputs before anything is written, and all problems are reported at once. After a failure or an
    interrupt, the next run of the same ladder resumes, and so does a conversion of one of its
    outputs. Outputs that are complete, with the bytes of the plan, are kept unless `force` is
    given. Memory: for each thread a chunk and its blocks in each type, at most 64 MiB of blocks
    that wait to be hashed in order, and the keys.
    """
    threads = _checked(plans, threads, manifest, verify_sample)
    every = _outputs(plans)
    found, hashes = _kept(every, threads, force=force)
    outputs = [o for o, result in zip(every, found, strict=True) if result is None]
    if not outputs:
        return [result for result in found if result is not None]
    common = _common(outputs)
    known: Mapping[int, str] = {}
    if manifest not in (None, "none"):
        known = _renumbered(hashes, _common(every).whole, common.whole)
    versions = versions_of(common.whole)
    engine: Engine[Step] | None = None
    try:
        begin_all(outputs, force=force, restart=restart)
        whole = common.whole
        sources = SourceDigests(
            whole,
            manifest or "none",
            _first_left(common, outputs),
            known=known,
        )
        cache = PageCache(whole, sources)
        reached = [Reached(is_scarce=cache.is_scarce) for _ in outputs]
        digests = [Digests(o.work, len(outputs)) for o in outputs]
        sinks: list[Sink] = []
        for output, its, digest in zip(outputs, reached, digests, strict=True):
            assert output.journal is not None, "outputs are begun"
            sinks.append(Sink(digest, output.parts, output.journal, its))
        encoders = [EncodeStage(encoder) for _ in outputs]
        scopes = [Scope.whole(o.work) for o in outputs]
        chunk = chunk_bytes or encoder.preferred_bytes
        route = ManyFiles(
            common,
            SourceStage(whole, sources),
            encoders,
            sinks,
            reached,
            cache,
        )
        each = [
            jobs(scope, chunk, output.done, cuts)
            for scope, output, cuts in zip(scopes, outputs, common.cuts, strict=True)
        ]
        engine = Engine(scopes, steps(whole, each), route)
        engine.run(threads, sync_seconds, progress)
        refuse_written(versions, versions_of(whole))
        for output in outputs:
            check_sample(output.work, output.parts, verify_sample, encoder)
        results = [
            result_of(
                output.plan,
                output.work,
                output.parts,
                digest,
                manifest=manifest_path(output.out) if manifest else None,
                resumed_bytes=route.resumed[number],
                rounded=encoders[number].rounded,
            )
            for number, (output, digest) in enumerate(zip(outputs, digests, strict=True))
        ]
        _name(outputs, results, common, sources.sources())
        written = iter(results)
        return [result or next(written) for result in found]
    finally:
        # A second interrupt ends the wait for a thread, which must not find its files closed.
        if engine is None or not engine.is_alive:
            for output in outputs:
                output.close()
        release_parts()


def check_ladder(
    plans: Sequence[tuple[Plan, Path]], *, force: bool = False, restart: bool = False
) -> None:
    """Raise what `convert_ladder` would raise before it writes anything."""
    _checked(plans, None, None, 0)
    outputs = _outputs(plans)
    try:
        found, _ = _kept(outputs, default_threads(), force=force)
        left = [o for o, result in zip(outputs, found, strict=True) if result is None]
        check_all(left, force=force, restart=restart)
    finally:
        for output in outputs:
            output.close()


def _outputs(plans: Sequence[tuple[Plan, Path]]) -> list[Output]:
    """Return the outputs; those with the same second moments share the factors of these."""
    factors: dict[str, Factors] = {}
    outputs: list[Output] = []
    for plan, out in plans:
        its = plan.moments and factors.setdefault(plan.moments.header_sha256, Factors(plan.moments))
        outputs.append(Output(plan, out, work_of(plan, its)))
    return outputs


def _common(outputs: Sequence[Output]) -> Common:
    return common_of([o.work for o in outputs], [str(o.out) for o in outputs])


def _kept(
    outputs: Sequence[Output], threads: int, *, force: bool
) -> tuple[list[Result | None], Mapping[int, str]]:
    """Return what is complete already, and hashes of source files by their number."""
    whole = _common(outputs).whole
    return ([None] * len(outputs), {}) if force else kept(outputs, whole, threads)


def _renumbered(hashes: Mapping[int, str], before: Work, now: Work) -> dict[int, str]:
    """Return hashes of source files by the numbers that they have in another work."""
    by_path = {before.source_files[n].path: sha256 for n, sha256 in hashes.items()}
    return {n: by_path[f.path] for n, f in enumerate(now.source_files) if f.path in by_path}


def _checked(
    plans: Sequence[tuple[Plan, Path]],
    threads: int | None,
    manifest: SourceHashes | None,
    verify_sample: int,
) -> int:
    """Return the number of threads; raise PlanError or ConvertError for what is not possible."""
    if not plans:
        raise ConvertError("a ladder of no outputs: name at least one recipe")
    problems = Problems()
    found = [
        problems.attempt(lambda p=plan: check_options(p, threads, manifest, verify_sample))
        for plan, _ in plans
    ]
    problems.raise_any(PlanError)
    return max(n for n in found if n is not None)


def _first_left(common: Common, outputs: Sequence[Output]) -> int | None:
    """Return the number, among all tensors, of the first with rows that are still to be read."""
    found = ((n, first_left(o.work, o.done)) for n, o in enumerate(outputs))
    return min((common.number(n, first) for n, first in found if first is not None), default=None)


def _name(
    outputs: Sequence[Output], results: Sequence[Result], common: Common, sources: Sequence[Source]
) -> None:
    """Give all outputs their final names.

    The journals stay until all have them, so that an interrupted run finds which are complete.
    """
    at = {file.path: n for n, file in enumerate(common.whole.source_files)}
    for output in outputs:
        assert output.journal is not None, "outputs are begun"
        record_complete(output.parts, output.journal)
    for output, result in zip(outputs, results, strict=True):
        its = [sources[at[file.path]] for file in output.work.source_files]
        rename(result, output.out, output.work, output.parts, its)
    for output in outputs:
        assert output.journal is not None, "outputs are begun"
        end(output.journal, output.out)
