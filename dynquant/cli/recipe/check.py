"""`dynquant recipe check`: reports the faults of a recipe, alone or for a model."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import ImatrixOption, LeaveOutOption, MlaOption
from dynquant.figures import counted


def check(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="The model to apply the recipe to.", show_default=False
        ),
    ] = None,
    imatrix: ImatrixOption = None,
    mla: MlaOption = "split",
    leave_out: LeaveOutOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
) -> None:
    """Check a recipe, optionally for a model; exit with 1 if there are faults.

    Without a model, only the text is checked. With a model, every rule must apply to a tensor and
    every row must be a multiple of the block. A missing imatrix is not a fault of the recipe.
    """
    if model is None:
        from dynquant.recipe.loader import load_recipe

        read = load_recipe(recipe)
        console.talk(f"{read.path}: {len(read.rules)} rules, no faults")
        return
    from dynquant.inputs import read_inputs
    from dynquant.plan.apply import apply_recipe
    from dynquant.plan.difference import bits_per_weight, typed_by

    given = read_inputs(
        model,
        recipe,
        imatrix,
        mla=mla,
        needs_vocab=False,
        leave_out=leave_out or (),
        fetch="stream",
    )
    found = apply_recipe(
        given.recipe, given.model, has_imatrix=given.imatrix is not None, strict=strict
    )
    for warning in found.warnings:
        console.talk(f"warning: {warning}")
    tensors = typed_by(found)
    size = f"{bits_per_weight(tensors):.3f} bits per weight"
    if n_open := len(found.assigned.open):
        size = f"{n_open} of them with types that the size decides, {size} at most"
    console.talk(
        f"{given.recipe.path}: fits {model} ({found.model.architecture}):"
        f" {counted(len(tensors), 'tensor')}, {size}"
    )
