"""`dynquant solve`: the best recipe for a size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    EffortOption,
    ImatrixOption,
    JsonOption,
    LeaveOutOption,
    ModelArgument,
    MomentsOption,
    PlanMlaOption,
    PreOption,
    QuietOption,
    RequantizeOption,
    SplitSizeOption,
    SplitTensorsOption,
    ThreadsOption,
    recipe_names,
    split_of,
)
from dynquant.cli.targets import (
    DEFAULT_RECIPE,
    Asked,
    ContextOption,
    FitOption,
    SensitivityOption,
    TargetBpwOption,
    TargetSizeOption,
    solved,
)
from dynquant.cli.text_files import ForceOption


def solve(
    model: ModelArgument,
    target_size: TargetSizeOption = None,
    target_bpw: TargetBpwOption = None,
    fit: FitOption = None,
    context: ContextOption = None,
    sensitivity: SensitivityOption = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            metavar="R",
            help="A recipe with `choose`: its other rules hold.",
            autocompletion=recipe_names,
        ),
    ] = DEFAULT_RECIPE,
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="RECIPE.yaml",
            help="The recipe to write; default: print it, and no table.",
            show_default=False,
        ),
    ] = None,
    force: ForceOption = False,
    json: JsonOption = False,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    threads: ThreadsOption = None,
    pre: PreOption = None,
    mla: PlanMlaOption = None,
    split_max_size: SplitSizeOption = None,
    split_max_tensors: SplitTensorsOption = None,
    leave_out: LeaveOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Find the recipe that is expected to lose least for a size.

    Rows of each tensor are encoded with every type that it may have. What their errors cost the
    model is estimated from trained models.
    """
    asked = Asked(target_size, target_bpw, fit, context, sensitivity)
    asked.check()
    from dynquant.cli.text_files import check_text, write_text
    from dynquant.inputs import read_inputs
    from dynquant.report.solved import solved_json, solved_line, solved_tables

    if out:
        check_text(out, force=force)
    inputs = read_inputs(
        model, recipe, imatrix, moments=moments, pre=pre, mla=mla, leave_out=leave_out or ()
    )
    found = solved(
        inputs,
        asked,
        threads=threads,
        quiet=quiet,
        effort=effort,
        allow_requantize=allow_requantize,
        split=split_of(split_max_size, split_max_tensors),
    )
    for warning in found.plan.warnings:
        console.warn(warning, quiet=quiet)
    if out:
        write_text(found.recipe.text, out, force=force, reads=inputs.recipe.files)
    if json:
        console.write_json(solved_json(found))
    elif out is None:
        console.write(found.recipe.text)
        console.talk(solved_line(found), quiet=quiet)
    else:
        console.show(solved_tables(found))
        console.talk(f"{out}: written", quiet=quiet)
