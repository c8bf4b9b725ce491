"""`dynquant convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dynquant.cli import console
from dynquant.cli.mmproj import (
    MmprojOption,
    MmprojOutOption,
    OnlyMmprojOption,
    Projecting,
    uncounted,
    without_projector,
)
from dynquant.cli.options import (
    BaseOption,
    EffortOption,
    ImatrixOption,
    KeepSourceOption,
    LeaveOutOption,
    LogFormatOption,
    ManifestOption,
    MaxSizeOption,
    MergeAdapterOption,
    MomentsOption,
    OutOption,
    PlanMlaOption,
    PreOption,
    RecipeOption,
    RemoteModelArgument,
    RequantizeOption,
    SetOption,
    SourceHashesOption,
    SplitSizeOption,
    SplitTensorsOption,
    StreamOption,
    ThreadsOption,
    fetch_of,
    size_of,
)
from dynquant.cli.parts import (
    PartOption,
    SchedulerOption,
    SeparateOption,
    part_of,
    write_on_cluster,
    write_part,
)
from dynquant.cli.planning import Planning
from dynquant.cli.targets import (
    Asked,
    ContextOption,
    FitOption,
    SensitivityOption,
    TargetBpwOption,
    TargetSizeOption,
)

if TYPE_CHECKING:
    from dynquant.conversion.gates import Gate
    from dynquant.conversion.result import Result
    from dynquant.conversion.reuse.old import Old
    from dynquant.conversion.work import Work
    from dynquant.plan.plan import Plan


@dataclass(frozen=True)
class _Job:
    """A file to write: the language model or its projector.

    gates: limits; those of the error are known afterwards
    """

    plan: Plan
    out: Path
    work: Work
    gates: list[Gate]
    max_error: float | None = None


@dataclass(frozen=True)
class _How:
    """How files are written and reported, as the command line has it."""

    threads: int
    force: bool
    restart: bool
    source_hashes: Literal["auto", "read", "none"] | None
    verify_sample: int
    summary: Path | None
    quiet: bool
    reuse: Old | None = None


def convert(
    model: RemoteModelArgument,
    out: OutOption,
    recipe: RecipeOption = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="PLAN.json",
            help="Carry out a plan that `dynquant plan --save` wrote, instead of a recipe.",
            show_default=False,
        ),
    ] = None,
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    target_size: TargetSizeOption = None,
    target_bpw: TargetBpwOption = None,
    fit: FitOption = None,
    context: ContextOption = None,
    sensitivity: SensitivityOption = None,
    mmproj: MmprojOption = None,
    mmproj_out: MmprojOutOption = None,
    only_mmproj: OnlyMmprojOption = False,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    threads: ThreadsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.gguf if it exists.")] = False,
    set_keys: SetOption = None,
    pre: PreOption = None,
    mla: PlanMlaOption = None,
    split_max_size: SplitSizeOption = None,
    split_max_tensors: SplitTensorsOption = None,
    leave_out: LeaveOutOption = None,
    merge_adapter: MergeAdapterOption = None,
    base: BaseOption = None,
    part: PartOption = None,
    separate: SeparateOption = False,
    scheduler: SchedulerOption = None,
    stream: StreamOption = False,
    keep_source: KeepSourceOption = "all",
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Start over instead of resuming an interrupted run."),
    ] = False,
    reuse: Annotated[
        Path | None,
        typer.Option(
            "--reuse",
            metavar="OLD.gguf",
            help="An earlier output with its manifest: tensors that would have the same bytes are"
            " copied from it, the others are encoded.",
            show_default=False,
        ),
    ] = None,
    no_manifest: ManifestOption = False,
    source_hashes: SourceHashesOption = "auto",
    verify_sample: Annotated[
        int,
        typer.Option(
            "--verify-sample",
            min=0,
            metavar="N",
            help="Ranges of rows to encode again at the end and compare; 0 for none.",
        ),
    ] = 8,
    max_size: MaxSizeOption = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            metavar="E",
            min=0.0,
            help="Exit with code 3 if the relative error is larger: the mean over the tensors,"
            " each counted by its number of weights.",
            show_default=False,
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            "--summary",
            metavar="FILE.md",
            help="Append a summary of the output to FILE.md, for a CI job.",
            show_default=False,
        ),
    ] = None,
    log_format: LogFormatOption = "text",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Convert a checkpoint to a GGUF file by a recipe, or by a saved plan."""
    console.log_as(log_format)
    planning = Planning(
        model,
        recipe,
        plan,
        imatrix,
        moments,
        effort,
        allow_requantize,
        set_keys,
        pre,
        mla,
        split_max_size,
        split_max_tensors,
        leave_out,
        Asked(target_size, target_bpw, fit, context, sensitivity),
        threads,
        quiet,
        merge_adapter,
        base,
        fetch_of(keep_source, is_streamed=stream),
    )
    projecting = planning.projecting(mmproj, only=only_mmproj, out=mmproj_out)
    wanted = part_of(part, plan=plan, separate=separate)
    if scheduler and (wanted or restart or only_mmproj or reuse):
        raise typer.BadParameter("--scheduler has no --part, --restart, --reuse or --only-mmproj")
    whole = {
        "--reuse": reuse,
        "--mmproj": projecting,
        "--max-error": max_error,
        "--summary": summary,
    }
    if wanted and (also := [name for name, value in whole.items() if value is not None]):
        raise typer.BadParameter(f"--part writes a part of one file: leave out {', '.join(also)}")
    limit = size_of(max_size, "--max-size")
    from dynquant.cli.text_files import refuse_read
    from dynquant.conversion.gates import check_gate
    from dynquant.conversion.output import check_output
    from dynquant.conversion.write import default_threads
    from dynquant.errors import ConvertError

    if quiet or log_format == "json":
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the library is imported
        os.environ["HF_HUB_VERBOSITY"] = "error"
    console.event(
        "start", quiet=quiet, command="convert", model=model, out=str(out), **planning.source
    )
    old = _old(reuse, only_mmproj=only_mmproj)
    if summary:
        from dynquant.release.job_summary import check_summary

        check_summary(summary)
    if planning.asked.is_given and out.exists() and not force:
        raise ConvertError(f"{out}: exists; replace it with --force, or name another output")
    made = _plans(planning, projecting, out, only=only_mmproj)
    jobs = [_job(plan, path, limit if path == out else None, max_error) for plan, path in made]
    _refuse_shared(jobs)
    for warning in uncounted(fit, made[0][0] if projecting else None):
        console.warn(warning, quiet=quiet)
    for job in jobs:
        if summary:
            refuse_read(summary, job.plan.recipe.places)
        seeing = made[0][0] if projecting else None
        for warning in without_projector(job.plan, seeing):
            console.warn(warning, quiet=quiet)
        if summary and not all(gate.holds for gate in job.gates):
            from dynquant.release.job_summary import add_summary, refused_summary

            add_summary(summary, refused_summary(job.out.name, job.gates))
        for gate in job.gates:
            check_gate(
                gate, str(job.out), "nothing was written: use fewer bits, or raise the limit"
            )
    jobs = [job for job in jobs if not _is_there(job, out, force=force, quiet=quiet)]
    if dry_run:
        from dynquant.report.plan_tables import plan_tables

        for job in jobs:
            check_output(job.plan, job.out, job.work, force=force)
            console.show(plan_tables(job.plan, job.work.layout.n_bytes))
            console.talk(f"{job.out}: not written, this is a dry run", quiet=quiet)
        return
    how = _How(
        threads or default_threads(),
        force,
        restart,
        None if no_manifest else source_hashes,
        verify_sample,
        summary,
        quiet,
        old,
    )
    if wanted:
        write_part(
            jobs[0].plan,
            out,
            wanted,
            separate=separate,
            threads=how.threads,
            force=force,
            restart=restart,
            source_hashes=how.source_hashes,
            quiet=quiet,
        )
        return
    # A fault of any file is reported before the first is written.
    _check_outputs(jobs, how)
    for job in jobs:
        _write(job, how, (scheduler, planning) if scheduler and job.out == out else None)


def _old(reuse: Path | None, *, only_mmproj: bool) -> Old | None:
    """Return the output to reuse."""
    if reuse is None:
        return None
    if only_mmproj:
        raise typer.BadParameter("--reuse is for language models; leave it out for a projector")
    from dynquant.conversion.reuse.old import read_old

    return read_old(reuse)


def _plans(
    planning: Planning, projecting: Projecting | None, out: Path, *, only: bool
) -> list[tuple[Plan, Path]]:
    """Return the plans to carry out, each with its file; the projector, which is small, first."""
    from dynquant.errors import ConvertError, Problems

    problems = Problems()
    plans: list[tuple[Plan, Path]] = []
    seeing = problems.attempt(projecting.make) if projecting else None
    if projecting and seeing:
        path = out if only else projecting.path(out, seeing)
        plans.append((seeing, path))
    if not only and (text := problems.attempt(planning.make)):
        plans.append((text, out))
    problems.raise_any()
    if len(plans) > 1:
        (one, _), (other, _) = plans
        if one.architecture == other.architecture:
            raise ConvertError(
                f"{planning.saved}: is the plan of a projector, too; carry it out without --mmproj"
            )
    return plans


def _refuse_shared(jobs: Sequence[_Job]) -> None:
    """Raise ConvertError if writing one file would use a name of the other."""
    from dynquant.conversion.output import places_of
    from dynquant.errors import ConvertError

    for one, other in combinations(jobs, 2):
        if shared := sorted(places_of(one.work, one.out) & places_of(other.work, other.out)):
            raise ConvertError(
                f"{shared[0]}: the projector ({one.out.name}) and the language model"
                f" ({other.out.name}) would both be written there; name another output, or give the"
                " projector another name with --mmproj-out"
            )


def _job(plan: Plan, out: Path, limit: int | None, max_error: float | None) -> _Job:
    from dynquant.conversion.gates import size_gate
    from dynquant.conversion.work import work_of

    work = work_of(plan)
    gates = [size_gate(work.layout.n_bytes, limit)] if limit is not None else []
    return _Job(plan, out, work, gates, max_error)


def _is_there(job: _Job, out: Path, *, force: bool, quiet: bool) -> bool:
    """Return whether a projector beside the output is complete already, as of an earlier run."""
    from dynquant.conversion.already import is_written

    if job.out == out or force or not job.out.is_file() or not is_written(job.plan, job.out):
        return False
    console.talk(f"{job.out}: is complete already, with the bytes of this plan", quiet=quiet)
    return True


def _check_outputs(jobs: Sequence[_Job], how: _How) -> None:
    """Raise ConvertError, with all reasons, if one of several files cannot be written."""
    from dynquant.conversion.journal import journal_path
    from dynquant.conversion.output import check_output
    from dynquant.conversion.reuse.old import refuse_output
    from dynquant.errors import ConvertError, Problems

    problems = Problems()
    for job in jobs:
        if not journal_path(job.out).exists():
            problems.attempt(
                lambda job=job: check_output(job.plan, job.out, job.work, force=how.force),
                ConvertError,
            )
        if (old := how.reuse) is not None:
            paths = job.work.layout.paths(job.out)
            problems.attempt(lambda old=old, paths=paths: refuse_output(old, paths), ConvertError)
    problems.raise_any(ConvertError)


def _write(job: _Job, how: _How, cluster: tuple[str, Planning] | None) -> None:
    """Write one file and report it; raise GateError if it exceeds a limit.

    cluster: the scheduler that it is written with, and how it was planned; None for this process
    """
    from dynquant.arch.towers.whole import CLIP
    from dynquant.conversion.gates import check_gate, error_gate
    from dynquant.conversion.losses import NOTHING_LOST

    started = time.monotonic()
    out, quiet = job.out, how.quiet
    if how.reuse and job.plan.architecture != CLIP:
        console.talk(f"{how.reuse.path}: comparing it, and hashing the model", quiet=quiet)
    try:
        result = _written(job, how) if cluster is None else _by_cluster(job, how, *cluster)
    except (KeyboardInterrupt, SystemExit):
        console.talk("interrupted; the same command resumes, --restart starts over")
        raise
    if result is None:
        console.talk(f"{out}: is complete already, by an earlier run", quiet=quiet)
        return
    gates = list(job.gates)
    if job.max_error is not None:
        gates.append(error_gate(result.loss or NOTHING_LOST, job.max_error))
    if how.summary:
        _summarize(how.summary, result, gates)
    for warning in result.warnings:
        console.warn(warning, quiet=quiet)
    report_of(result, out, how.threads, time.monotonic() - started, quiet=quiet)
    for gate in gates:
        check_gate(gate, str(out), "the output is complete but exceeds the limit")


def _written(job: _Job, how: _How) -> Result:
    from dynquant.arch.towers.whole import CLIP
    from dynquant.conversion.write import convert_plan

    with console.progress_of(job.out.name, quiet=how.quiet) as progress:
        return convert_plan(
            job.plan,
            job.out,
            threads=how.threads,
            force=how.force,
            restart=how.restart,
            manifest=how.source_hashes,
            verify_sample=how.verify_sample,
            progress=progress,
            reuse=how.reuse if job.plan.architecture != CLIP else None,
        )


def _by_cluster(job: _Job, how: _How, scheduler: str, planning: Planning) -> Result | None:
    return write_on_cluster(
        job.plan,
        job.out,
        scheduler,
        planning,
        threads=planning.threads,
        force=how.force,
        source_hashes=how.source_hashes,
        verify_sample=how.verify_sample,
        quiet=how.quiet,
    )


def _summarize(summary: Path, result: Result, gates: list[Gate]) -> None:
    """Append what was written to a CI job's summary."""
    from dataclasses import replace

    from dynquant.release.finished import open_finished
    from dynquant.release.job_summary import add_summary, summary_of

    finished = replace(open_finished(result.path), measured=result.errors)
    add_summary(summary, summary_of(finished, result.sha256, gates))


def report_of(
    result: Result,
    out: Path,
    threads: int,
    seconds: float,
    *,
    is_joined: bool = False,
    quiet: bool,
) -> None:
    """Print what was written, as a line of text or as an event.

    is_joined: of parts, so that no weight was encoded
    """
    from dynquant.feedback.decided import gained_text
    from dynquant.figures import figure, size_text
    from dynquant.quants.readers import readers_text
    from dynquant.report.reused import reused_lines

    plan: Plan = result.plan
    rest = 1 - result.resumed_bytes / plan.tensor_bytes
    rate = 0 if is_joined else plan.n_weights * rest / seconds
    if console.event(
        "done",
        quiet=quiet,
        out=str(out),
        files=[
            {"name": path.name, "bytes": n_bytes, "sha256": sha256}
            for path, n_bytes, sha256 in zip(
                result.paths, result.file_bytes, result.sha256, strict=True
            )
        ],
        bytes=result.n_bytes,
        bits_per_weight=result.bits_per_weight,
        error=result.loss.weighted if result.loss else None,
        threads=threads,
        weights_per_second=round(rate),
        resumed_bytes=result.resumed_bytes,
        reused_tensors=len(result.reused.names) if result.reused else 0,
        reused_bytes=result.reused.n_bytes if result.reused else 0,
    ):
        return
    if result.reused:
        for line in reused_lines(result.reused):
            console.talk(line, quiet=quiet)
    resumed = ""
    if result.resumed_bytes:
        resumed = f", {size_text(result.resumed_bytes)} of it from an earlier run"
    error = f", error {figure(result.loss.weighted)}" if result.loss else ""
    shards = f" in {len(result.paths)} shards" if len(result.paths) > 1 else ""
    many = "threads" if threads > 1 else "thread"
    if result.gains:
        console.talk(f"error feedback: {gained_text(result.gains.values())}", quiet=quiet)
    readers = readers_text(plan.type_counts, plan.architecture, is_adapter=plan.is_adapter)
    console.talk(f"readers: {readers}", quiet=quiet)
    console.talk(
        f"{out}: {size_text(result.n_bytes)}{shards}, {plan.bits_per_weight:.3f} bits per weight"
        f"{error}, {'joined and checked ' if is_joined else ''}in {console.duration(seconds)}"
        f" on {threads} {many}"
        + ("" if is_joined else f" ({rate / 1e6:.1f} million weights/s){resumed}"),
        quiet=quiet,
    )
