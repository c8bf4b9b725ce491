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
    ManifestOption,
    MlaOption,
    ModelArgument,
    PreOption,
    RecipeOption,
    RequantizeOption,
    SetOption,
    SourceHashesOption,
    SplitSizeOption,
    SplitTensorsOption,
    settings,
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Convert a checkpoint to a GGUF file by a recipe."""
    wanted = settings(set_keys)
    split = split_of(split_max_size, split_max_tensors)
    from dynquant.arch.load import load_model
    from dynquant.conversion.engine import convert_plan, default_threads
    from dynquant.conversion.journal import journal_path
    from dynquant.conversion.layout import lay_out
    from dynquant.conversion.output import check_output
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
        split=split,
    )
    for warning in plan.warnings:
        console.talk(f"warning: {warning}", quiet=quiet)
    if dry_run:
        layout = lay_out(plan)
        check_output(plan, out, layout, force=force)
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
    size = gigabytes(sum(path.stat().st_size for path in made.paths))
    rest = 1 - made.resumed / plan.tensor_bytes
    resumed = f", {gigabytes(made.resumed)} of it written before" if made.resumed else ""
    shards = f" in {len(made.paths)} shards" if len(made.paths) > 1 else ""
    console.talk(
        f"{out}: {size}{shards}, {plan.bits_per_weight:.3f} bits per weight, in"
        f" {console.duration(seconds)} on {threads} threads"
        f" ({plan.n_weights * rest / seconds / 1e6:.1f} million weights/s){resumed}",
        quiet=quiet,
    )
