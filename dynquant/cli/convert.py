"""`dynquant convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    EffortOption,
    ImatrixOption,
    MlaOption,
    ModelArgument,
    PreOption,
    RecipeOption,
    RequantizeOption,
    SetOption,
    settings,
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
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Worker threads; one for each CPU if not given.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.gguf if it exists.")] = False,
    set_keys: SetOption = None,
    pre: PreOption = None,
    mla: MlaOption = "split",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Convert a checkpoint to a GGUF file by a recipe."""
    wanted = settings(set_keys)
    from dynquant.arch.load import load_model
    from dynquant.conversion.engine import convert_plan, default_threads
    from dynquant.conversion.layout import lay_out
    from dynquant.conversion.output import check_output, part_path
    from dynquant.importance.imatrix import read_imatrix
    from dynquant.plan.plan import make_plan
    from dynquant.recipe.language import load_recipe
    from dynquant.report.plan_tables import plan_tables
    from dynquant.report.tables import gigabytes

    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the library is imported
    started = time.monotonic()
    plan = make_plan(
        load_model(model, pre=pre, mla=mla),
        load_recipe(recipe),
        imatrix=read_imatrix(imatrix) if imatrix else None,
        effort=effort,
        allow_requantize=allow_requantize,
        set_keys=wanted,
    )
    for warning in plan.warnings:
        console.talk(f"warning: {warning}", quiet=quiet)
    if dry_run:
        file_bytes = lay_out(plan).file_bytes
        check_output(plan, out, file_bytes, force=force)
        console.show(plan_tables(plan, file_bytes))
        console.talk(f"{out}: not written, this is a dry run", quiet=quiet)
        return
    threads = threads or default_threads()
    try:
        with console.progress_of(out.name, quiet=quiet) as progress:
            convert_plan(plan, out, threads=threads, force=force, progress=progress)
    except (KeyboardInterrupt, SystemExit):
        console.talk(f"interrupted; {part_path(out)} is incomplete, the next run replaces it")
        raise
    seconds = time.monotonic() - started
    console.talk(
        f"{out}: {gigabytes(out.stat().st_size)}, {plan.bits_per_weight:.3f} bits per weight, in"
        f" {console.duration(seconds)} on {threads} threads"
        f" ({plan.n_weights / seconds / 1e6:.1f} million weights/s)",
        quiet=quiet,
    )
