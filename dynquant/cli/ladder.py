"""`dynquant ladder`: several GGUF files of one model from one pass over its weights."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    EffortOption,
    ImatrixOption,
    LeaveOutOption,
    LogFormatOption,
    ManifestOption,
    MergeAdapterOption,
    ModelArgument,
    MomentsOption,
    PlanMlaOption,
    PreOption,
    QuietOption,
    RequantizeOption,
    SetOption,
    SourceHashesOption,
    SplitSizeOption,
    SplitTensorsOption,
    ThreadsOption,
    recipe_names,
    settings,
    size_of,
    split_of,
)
from dynquant.cli.targets import DEFAULT_RECIPE, SensitivityOption

if TYPE_CHECKING:
    from dynquant.budget.ladder import Reading, Rung
    from dynquant.conversion.result import Result


def ladder(
    model: ModelArgument,
    recipes: Annotated[
        str | None,
        typer.Option(
            "--recipes",
            metavar="R,R,…",
            help="Recipes, separated by commas: a file for each.",
            show_default=False,
            autocompletion=recipe_names,
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            metavar="SIZE,SIZE,…",
            help="Sizes separated by commas, such as 8GB,12GB,16GB: a file for each, with the types"
            " that fill it best. They are measured once.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="R",
            help="A recipe with `choose` for --sizes. Default: budget.",
            show_default=False,
            autocompletion=recipe_names,
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="A folder, for MODEL-RECIPE.gguf or MODEL-SIZE.gguf; or a name with {} in place of"
            " the recipe or the size, such as tiny-{}.gguf.",
        ),
    ] = ".",
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    sensitivity: SensitivityOption = None,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    threads: ThreadsOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print the files, write nothing."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace outputs that exist, also complete ones.")
    ] = False,
    set_keys: SetOption = None,
    pre: PreOption = None,
    mla: PlanMlaOption = None,
    split_max_size: SplitSizeOption = None,
    split_max_tensors: SplitTensorsOption = None,
    leave_out: LeaveOutOption = None,
    merge_adapter: MergeAdapterOption = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Start over instead of resuming an interrupted run."),
    ] = False,
    no_manifest: ManifestOption = False,
    source_hashes: SourceHashesOption = "auto",
    verify_sample: Annotated[
        int,
        typer.Option(
            "--verify-sample",
            min=0,
            metavar="N",
            help="Ranges of rows of each file to encode again at the end and compare; 0 for none.",
        ),
    ] = 8,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Convert a checkpoint to several GGUF files at once.

    The weights are read once, and encoded once for all files that have them in the same type. Each
    file has the bytes that `dynquant convert` gives.
    """
    console.log_as(log_format)
    if (recipes is None) == (sizes is None):
        raise typer.BadParameter("give one of --recipes R,R,… and --sizes SIZE,SIZE,…")
    if recipes is not None and (recipe or sensitivity):
        raise typer.BadParameter("--recipe and --sensitivity are for --sizes; leave them out")
    words = _words(recipes if recipes is not None else sizes or "")
    if sizes is not None:
        for word in words:
            size_of(word, "--sizes")
    options: dict[str, Any] = {
        "effort": effort,
        "allow_requantize": allow_requantize,
        "set_keys": settings(set_keys),
        "split": split_of(split_max_size, split_max_tensors),
    }
    from dynquant.budget.ladder import Reading, output_of
    from dynquant.conversion.ladder.run import check_ladder
    from dynquant.conversion.write import default_threads
    from dynquant.report.ladder import ladder_table

    if quiet or log_format == "json":
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the library is imported
    named = "recipes" if recipes is not None else "sizes"
    console.event("start", quiet=quiet, command="ladder", model=model, out=out, **{named: words})
    reading = Reading(model, imatrix, moments, pre, mla, leave_out or (), merge_adapter or ())
    n = threads or default_threads()
    if sizes is None:
        from dynquant.budget.ladder import rungs_of_recipes

        rungs = rungs_of_recipes(reading, words, options)
    else:
        rungs = _solved(reading, words, recipe or DEFAULT_RECIPE, sensitivity, n, options, quiet)
    placed = [(rung, output_of(out, model, rung)) for rung in rungs]
    with console.each_warning_once():
        for rung, _ in placed:
            for warning in rung.plan.warnings:
                console.warn(warning, quiet=quiet)
    plans = [(rung.plan, path) for rung, path in placed]
    if dry_run:
        check_ladder(plans, force=force, restart=restart)
        console.show(ladder_table(placed))
        console.talk(
            f"{len(plans)} files: not written, this is a dry run",
            quiet=quiet,
        )
        return
    _write(
        plans,
        threads=n,
        force=force,
        restart=restart,
        manifest=None if no_manifest else source_hashes,
        verify_sample=verify_sample,
        quiet=quiet,
    )


def _words(text: str) -> list[str]:
    """Return the parts of a list with commas; an empty part is wrong usage."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise typer.BadParameter(f"{text!r} has an empty part; separate names by single commas")
    if double := sorted({word for word in words if words.count(word) > 1}):
        raise typer.BadParameter(f"{', '.join(double)}: is given twice; leave one out")
    return words


def _solved(
    reading: Reading,
    words: Sequence[str],
    recipe: str,
    sensitivity: Path | None,
    threads: int,
    options: Mapping[str, Any],
    quiet: bool,
) -> list[Rung]:
    from dynquant.budget.ladder import named_size, rungs_of_sizes
    from dynquant.cli.steps import counting
    from dynquant.report.solved import solved_line

    with counting("measuring the types", quiet=quiet) as progress:
        rungs = rungs_of_sizes(
            reading,
            [named_size(word) for word in words],
            recipe,
            options,
            threads=threads,
            sensitivity=sensitivity,
            progress=progress,
        )
    for rung in rungs:
        if rung.solved:
            console.talk(solved_line(rung.solved), quiet=quiet)
    return rungs


def _write(plans: Sequence[tuple[Any, Path]], *, quiet: bool, **options: Any) -> None:
    """Write all files and report them."""
    from dynquant.conversion.ladder.run import convert_ladder

    started = time.monotonic()
    try:
        with console.progress_of(f"{len(plans)} files", quiet=quiet) as progress:
            results = convert_ladder(plans, progress=progress, **options)
    except (KeyboardInterrupt, SystemExit):
        console.talk("interrupted; the same command resumes, --restart starts over")
        raise
    for result in results:
        for warning in result.warnings:
            console.warn(f"{result.path.name}: {warning}", quiet=quiet)
    _report(results, time.monotonic() - started, options["threads"], quiet=quiet)


def _report(results: Sequence[Result], seconds: float, threads: int, *, quiet: bool) -> None:
    """Print what was written, a line for each file, or an event."""
    from dynquant.figures import counted, figure, size_text

    if console.event(
        "done",
        quiet=quiet,
        outputs=[
            {
                "out": str(r.path),
                "files": [
                    {"name": path.name, "bytes": n_bytes, "sha256": sha256}
                    for path, n_bytes, sha256 in zip(r.paths, r.file_bytes, r.sha256, strict=True)
                ],
                "bytes": r.n_bytes,
                "bits_per_weight": r.bits_per_weight,
                "error": r.loss.weighted if r.loss else None,
                "resumed_bytes": r.resumed_bytes,
            }
            for r in results
        ],
        bytes=sum(r.n_bytes for r in results),
        threads=threads,
    ):
        return
    for r in results:
        error = f", error {figure(r.loss.weighted)}" if r.loss else ""
        earlier = ""
        if r.resumed_bytes:
            earlier = f", {size_text(r.resumed_bytes)} of it from an earlier run"
        console.talk(
            f"{r.path}: {size_text(r.n_bytes)}, {r.bits_per_weight:.3f} bits per weight{error}"
            f"{earlier}",
            quiet=quiet,
        )
    total = size_text(sum(r.n_bytes for r in results))
    console.talk(
        f"{counted(len(results), 'file')}, {total}, in {console.duration(seconds)} on"
        f" {counted(threads, 'thread')}",
        quiet=quiet,
    )
