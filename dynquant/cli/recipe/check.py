"""`dynquant recipe check`: whether a recipe can be read, and whether it fits a model."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import ImatrixOption, MlaOption


def check(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")
    ],
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="The model that it should fit.", show_default=False),
    ] = None,
    imatrix: ImatrixOption = None,
    mla: MlaOption = "split",
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings for errors.")] = False,
) -> None:
    """Read a recipe, and apply it to a model; exit with 1 if there is something to mend.

    Without a model the words are checked; with one, that every rule takes a tensor and that rows
    divide. Importance that is missing is no fault of the recipe.
    """
    from dynquant.errors import RecipeError
    from dynquant.recipe.loader import load_recipe

    read = load_recipe(recipe)
    if model is None:
        console.talk(f"{read.path}: {len(read.rules)} rules, nothing to mend")
        return
    from dynquant.arch.load import load_model
    from dynquant.importance.imatrix import read_imatrix
    from dynquant.plan.difference import bits_per_weight, typed_by
    from dynquant.plan.resolve import resolve

    if imatrix:
        read_imatrix(imatrix)  # so that a file that is none is told
    given = imatrix is not None or read.importance == "required"
    found = resolve(load_model(model, mla=mla, needs_vocab=False), read, importance=given)
    if strict:
        RecipeError.raise_any(found.warnings)
    for warning in found.warnings:
        console.talk(f"warning: {warning}")
    tensors = typed_by(found)
    console.talk(
        f"{read.path}: fits {model} ({found.model.architecture}): {len(tensors)} tensors,"
        f" {bits_per_weight(tensors):.3f} bits per weight"
    )
