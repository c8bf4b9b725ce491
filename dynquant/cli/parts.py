"""`dynquant convert --part` and `dynquant join`: one output by many processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    BaseOption,
    ImatrixOption,
    LogFormatOption,
    ManifestOption,
    MergeAdapterOption,
    ModelArgument,
    MomentsOption,
    OutOption,
    QuietOption,
    SourceHashesOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from dynquant.cli.planning import Planning
    from dynquant.conversion.parts.run import PartResult
    from dynquant.conversion.parts.share import Part
    from dynquant.conversion.result import Result
    from dynquant.conversion.source_hashes import SourceHashes
    from dynquant.plan.plan import Plan

PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="K/N",
        help="Write only the rows of the K-th of N parts, on any machine; `dynquant join` makes"
        " the output of all. Needs --plan.",
        show_default=False,
    ),
]
SeparateOption = Annotated[
    bool,
    typer.Option(
        "--separate",
        help="Write the rows of --part to a separate file, for machines without a shared disk.",
    ),
]


SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Write with the workers of a Dask cluster, such as tcp://host:8786, that see the model"
        " and the output. --threads is then of each task. Needs the extra `cluster`.",
        show_default=False,
    ),
]


def part_of(text: str | None, *, plan: Path | None, separate: bool) -> Part | None:
    """Return the part of --part; raise BadParameter if it is not valid, or has no plan."""
    if text is None:
        if separate:
            raise typer.BadParameter("--separate needs --part K/N")
        return None
    from dynquant.conversion.parts.share import Part

    try:
        part = Part.parse(text)
    except ValueError as e:
        raise typer.BadParameter(str(e), param_hint="--part") from None
    if plan is None:
        raise typer.BadParameter(
            "--part needs --plan PLAN.json, which is the same for all parts: write it with"
            " `dynquant plan --save`"
        )
    return part


def write_part(
    plan: Plan,
    out: Path,
    part: Part,
    *,
    separate: bool,
    threads: int,
    force: bool,
    restart: bool,
    source_hashes: SourceHashes | None,
    quiet: bool,
) -> None:
    """Write a part and report it."""
    from dynquant.conversion.parts.run import convert_part

    started = time.monotonic()
    name = f"{out.name}, part {part}"
    try:
        with console.progress_of(name, quiet=quiet) as progress:
            made = convert_part(
                plan,
                out,
                part,
                separate=separate,
                threads=threads,
                force=force,
                restart=restart,
                source_hashes=source_hashes or "none",
                progress=progress,
            )
    except (KeyboardInterrupt, SystemExit):
        console.talk("interrupted; the same command resumes, --restart starts over")
        raise
    _report(made, out, threads, time.monotonic() - started, quiet=quiet)


def _report(made: PartResult, out: Path, threads: int, seconds: float, *, quiet: bool) -> None:
    from dynquant.figures import size_text

    if console.event(
        "part",
        quiet=quiet,
        out=str(out),
        part=str(made.part),
        bytes=made.n_bytes,
        weights=made.n_weights,
        resumed_bytes=made.resumed_bytes,
        threads=threads,
        file=None if made.path is None else str(made.path),
    ):
        return
    resumed = f", {size_text(made.resumed_bytes)} of it by an earlier run"
    console.talk(
        f"{out}: part {made.part}, {size_text(made.n_bytes)}, in {console.duration(seconds)}"
        + (resumed if made.resumed_bytes else "")
        + ("" if made.path is None else f", in {made.path.name}"),
        quiet=quiet,
    )


def write_on_cluster(
    plan: Plan,
    out: Path,
    scheduler: str,
    planning: Planning,
    *,
    threads: int | None,
    force: bool,
    source_hashes: SourceHashes | None,
    verify_sample: int,
    quiet: bool,
) -> Result | None:
    """Write a plan's files with a cluster; return None if they are complete already."""
    from dynquant.cluster.run import convert_on_cluster

    with console.progress_of(out.name, quiet=quiet) as progress:
        return convert_on_cluster(
            plan,
            out,
            scheduler,
            model=planning.model,
            plan_file=planning.saved,
            imatrix=planning.imatrix,
            moments=planning.moments,
            merge_adapter=planning.merge_adapter or (),
            base=planning.base,
            threads=threads or 1,
            force=force,
            manifest=source_hashes,
            verify_sample=verify_sample,
            progress=progress,
        )


def join(
    model: ModelArgument,
    out: OutOption,
    plan: Annotated[
        Path,
        typer.Option("--plan", metavar="PLAN.json", help="The plan that the parts were made by."),
    ],
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.gguf if it exists.")] = False,
    merge_adapter: MergeAdapterOption = None,
    base: BaseOption = None,
    no_manifest: ManifestOption = False,
    source_hashes: SourceHashesOption = "auto",
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Make a GGUF of the parts that `convert --part` wrote, and check every row of it."""
    console.log_as(log_format)
    from dynquant.cli.convert import report_of
    from dynquant.conversion.parts.join import join_parts
    from dynquant.conversion.write import default_threads
    from dynquant.inputs import load_plan

    started = time.monotonic()
    console.event("start", quiet=quiet, command="join", model=model, out=str(out), plan=str(plan))
    found = load_plan(plan, model, imatrix, moments, merge_adapter or (), base)
    with console.progress_of(out.name, "joining", quiet=quiet) as progress:
        result = join_parts(
            found,
            out,
            threads=threads,
            force=force,
            manifest=None if no_manifest else source_hashes,
            progress=progress,
        )
    if result is None:
        console.talk(f"{out}: is complete already, by an earlier join", quiet=quiet)
        return
    for warning in result.warnings:
        console.warn(warning, quiet=quiet)
    seconds = time.monotonic() - started
    report_of(result, out, threads or default_threads(), seconds, is_joined=True, quiet=quiet)
