"""`dynquant convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.inputs import read_inputs
from dynquant.cli.options import (
    EffortOption,
    ImatrixOption,
    LogFormatOption,
    ManifestOption,
    MaxSizeOption,
    MlaOption,
    ModelArgument,
    PreOption,
    RecipeOption,
    RequantizeOption,
    SetOption,
    SourceHashesOption,
    SplitSizeOption,
    SplitTensorsOption,
    ThreadsOption,
    settings,
    size_of,
    split_of,
)


def convert(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT.gguf", help="The file to write.")
    ],
    recipe: RecipeOption,
    imatrix: ImatrixOption = None,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    threads: ThreadsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.gguf if it exists.")] = False,
    set_keys: SetOption = None,
    pre: PreOption = None,
    mla: MlaOption = "split",
    split_max_size: SplitSizeOption = None,
    split_max_tensors: SplitTensorsOption = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Begin anew where an earlier run was broken off, not go on."
        ),
    ] = False,
    no_manifest: ManifestOption = False,
    source_hashes: SourceHashesOption = "auto",
    verify_sample: Annotated[
        int,
        typer.Option(
            "--verify-sample",
            min=0,
            metavar="N",
            help="Ranges of rows to encode again at the end, and to compare; 0 for none.",
        ),
    ] = 8,
    max_size: MaxSizeOption = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            metavar="E",
            min=0.0,
            help="Exit with 3 if the weighted relative error of all weights is larger: 0.02.",
            show_default=False,
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            "--summary",
            metavar="FILE.md",
            help="Add what was made to FILE.md, as the summary of a CI job.",
            show_default=False,
        ),
    ] = None,
    log_format: LogFormatOption = "text",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Convert a checkpoint to a GGUF file by a recipe."""
    console.log_as(log_format)
    wanted = settings(set_keys)
    split = split_of(split_max_size, split_max_tensors)
    most_bytes = size_of(max_size, "--max-size")
    from dynquant.conversion.gates import check_gate, error_gate, size_gate
    from dynquant.conversion.journal import journal_path
    from dynquant.conversion.losses import NOTHING_LOST
    from dynquant.conversion.output import check_output
    from dynquant.conversion.work import work_of
    from dynquant.conversion.write import convert_plan, default_threads
    from dynquant.figures import gigabytes
    from dynquant.plan.make import make_plan
    from dynquant.release.finished import open_finished
    from dynquant.release.job_summary import add_summary, refused_summary, summary_of
    from dynquant.report.plan_tables import plan_tables

    if quiet or log_format == "json":
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the library is imported
    started = time.monotonic()
    console.event("start", quiet=quiet, command="convert", model=model, recipe=recipe, out=str(out))
    loaded, rules, means = read_inputs(model, recipe, imatrix, pre=pre, mla=mla)
    plan = make_plan(
        loaded,
        rules,
        imatrix=means,
        effort=effort,
        allow_requantize=allow_requantize,
        set_keys=wanted,
        split=split,
    )
    for warning in plan.warnings:
        console.warn(warning, quiet=quiet)
    work = work_of(plan)
    layout = work.layout
    gates = [size_gate(layout.n_bytes, most_bytes)] if most_bytes is not None else []
    if summary and not all(gate.holds for gate in gates):
        add_summary(summary, refused_summary(out.name, gates))
    for gate in gates:
        check_gate(gate, str(out), "nothing was written: take fewer bits, or allow more")
    if dry_run:
        check_output(plan, out, work, force=force)
        console.show(plan_tables(plan, layout.n_bytes))
        console.talk(f"{out}: not written, this is a dry run", quiet=quiet)
        return
    threads = threads or default_threads()
    try:
        with console.progress_of(out.name, quiet=quiet) as progress:
            made = convert_plan(
                plan,
                out,
                threads=threads,
                force=force,
                restart=restart,
                manifest=None if no_manifest else source_hashes,
                verify_sample=verify_sample,
                progress=progress,
            )
    except (KeyboardInterrupt, SystemExit):
        console.talk(
            f"interrupted; the same command goes on from {journal_path(out)}, --restart begins anew"
        )
        raise
    seconds = time.monotonic() - started
    finished = open_finished(made.paths[0])
    if max_error is not None:
        gates.append(error_gate(made.loss or NOTHING_LOST, max_error))
    if summary:
        add_summary(summary, summary_of(finished, made.sha256, gates))
    rest = 1 - made.resumed_bytes / plan.tensor_bytes
    rate = plan.n_weights * rest / seconds
    if not console.event(
        "done",
        quiet=quiet,
        out=str(out),
        files=[
            {"name": path.name, "bytes": n_bytes, "sha256": sha256}
            for path, n_bytes, sha256 in zip(
                finished.paths, finished.sizes, made.sha256, strict=True
            )
        ],
        bytes=finished.file_bytes,
        bits_per_weight=plan.bits_per_weight,
        error=made.loss.weighted if made.loss else None,
        threads=threads,
        weights_per_second=round(rate),
        resumed_bytes=made.resumed_bytes,
    ):
        size = gigabytes(finished.file_bytes)
        resumed = (
            f", {gigabytes(made.resumed_bytes)} of it written before" if made.resumed_bytes else ""
        )
        shards = f" in {len(made.paths)} shards" if len(made.paths) > 1 else ""
        console.talk(
            f"{out}: {size}{shards}, {plan.bits_per_weight:.3f} bits per weight, in"
            f" {console.duration(seconds)} on {threads} threads"
            f" ({rate / 1e6:.1f} million weights/s){resumed}",
            quiet=quiet,
        )
    for gate in gates:
        check_gate(gate, str(out), "it is complete, but not what was asked for")
