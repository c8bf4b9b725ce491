"""`dynquant plan`: what a conversion would write, without writing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.inputs import read_inputs
from dynquant.cli.options import (
    EffortOption,
    ImatrixOption,
    JsonOption,
    LogFormatOption,
    MaxSizeOption,
    MlaOption,
    ModelArgument,
    PreOption,
    RecipeOption,
    RequantizeOption,
    SetOption,
    SplitSizeOption,
    SplitTensorsOption,
    settings,
    size_of,
    split_of,
)


def plan(
    model: ModelArgument,
    recipe: RecipeOption,
    imatrix: ImatrixOption = None,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    tensors: Annotated[
        bool,
        typer.Option("--tensors", help="Print a line for each tensor, with the rule that decided."),
    ] = False,
    json: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="PLAN.html", help="Draw the plan on a page for a browser, too."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace PLAN.html if it exists.")] = False,
    set_keys: SetOption = None,
    pre: PreOption = None,
    mla: MlaOption = "split",
    split_max_size: SplitSizeOption = None,
    split_max_tensors: SplitTensorsOption = None,
    max_size: MaxSizeOption = None,
    log_format: LogFormatOption = "text",
) -> None:
    """Print the type, size and place that a recipe gives each tensor."""
    console.log_as(log_format)
    wanted = settings(set_keys)
    split = split_of(split_max_size, split_max_tensors)
    most_bytes = size_of(max_size, "--max-size")
    from dynquant.conversion.gates import check_gate, size_gate
    from dynquant.conversion.layout import lay_out
    from dynquant.errors import PlanError
    from dynquant.plan.plan import make_plan
    from dynquant.report.documents import plan_json
    from dynquant.report.html import check_page, plan_html, write_page
    from dynquant.report.plan_tables import plan_tables

    if html:
        check_page(html, force=force)
    console.event("start", command="plan", model=model, recipe=recipe)
    loaded, rules, means = read_inputs(model, recipe, imatrix, pre=pre, mla=mla, needs_vocab=False)
    made = make_plan(
        loaded,
        rules,
        imatrix=means,
        effort=effort,
        allow_requantize=allow_requantize,
        set_keys=wanted,
        split=split,
        draft=True,
    )
    for warning in made.warnings:
        console.warn(warning)
    for lack in made.missing:
        console.warn(f"{lack}; until then no file can be written, nor its size be known")
    file_bytes = None if made.missing else lay_out(made).n_bytes
    if html:
        write_page(plan_html(made, file_bytes), html, force=force)
        console.talk(f"{html}: written")
    if json:
        console.write_json(plan_json(made) | {"file_bytes": file_bytes})
    else:
        console.show(plan_tables(made, file_bytes, each=tensors))
    console.event(
        "done",
        file_bytes=file_bytes,
        tensor_bytes=made.tensor_bytes,
        bits_per_weight=made.bits_per_weight,
        type_counts=made.type_counts,
    )
    PlanError.raise_any(made.refusals)
    if most_bytes is not None:
        # Keys are missing where the size of the file is not known; the tensors are most of it.
        gate = size_gate(made.data_bytes if file_bytes is None else file_bytes, most_bytes)
        check_gate(gate, model, "take a recipe of fewer bits, or allow more")
