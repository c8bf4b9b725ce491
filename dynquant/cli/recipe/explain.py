"""`dynquant recipe explain`: every rule that was tried for a tensor."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import ImatrixOption, JsonOption, MlaOption, ModelArgument


def explain(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")
    ],
    model: ModelArgument,
    tensors: Annotated[
        list[str],
        typer.Argument(
            metavar="TENSOR...",
            help="Names as in the plan; blk.3.ffn_down will do; a glob or a /regex/ takes several.",
        ),
    ],
    imatrix: ImatrixOption = None,
    json: JsonOption = False,
    mla: MlaOption = "split",
) -> None:
    """Show why tensors get their types: each rule that was tried, and what decided."""
    from dynquant.arch.load import load_model
    from dynquant.plan.resolve import resolve
    from dynquant.recipe.loader import load_recipe
    from dynquant.report.explained import explained_json, explained_tables, explanations

    read = load_recipe(recipe)
    given = imatrix is not None or read.importance == "required"
    found = resolve(load_model(model, mla=mla, needs_vocab=False), read, importance=given)
    explained = explanations(read, found, tensors)
    if json:
        console.write_json(explained_json(explained))
    else:
        console.show(*explained_tables(explained))
