"""`dynquant recipe explain`: shows the result of every rule for a tensor."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    ImatrixOption,
    JsonOption,
    LeaveOutOption,
    MlaOption,
    RemoteModelArgument,
)


def explain(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")
    ],
    model: RemoteModelArgument,
    tensors: Annotated[
        list[str],
        typer.Argument(
            metavar="TENSOR...",
            help="Names as in the plan, `.weight` is optional; globs and /regex/ select several.",
        ),
    ],
    imatrix: ImatrixOption = None,
    json: JsonOption = False,
    mla: MlaOption = "split",
    leave_out: LeaveOutOption = None,
) -> None:
    """Show why tensors get their types: the result of each rule, and the rule that decides."""
    from dynquant.inputs import read_inputs
    from dynquant.plan.apply import apply_recipe
    from dynquant.report.explained import explained_json, explained_tables, explanations

    given = read_inputs(
        model,
        recipe,
        imatrix,
        mla=mla,
        needs_vocab=False,
        leave_out=leave_out or (),
        fetch="stream",
    )
    found = apply_recipe(given.recipe, given.model, has_imatrix=given.imatrix is not None)
    explained = explanations(given.recipe, found, tensors)
    if json:
        console.write_json(explained_json(explained))
    else:
        console.show(*explained_tables(explained))
