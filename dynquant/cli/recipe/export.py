"""`dynquant recipe export`: writes the types of a recipe as a list for another tool."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dynquant.cli import console
from dynquant.cli.options import ImatrixOption, LeaveOutOption, MlaOption, RemoteModelArgument
from dynquant.cli.text_files import ForceOption, OutOption, write_text


def export(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")
    ],
    model: RemoteModelArgument,
    out: OutOption = None,
    form: Annotated[
        Literal["tensor-type-file"],
        typer.Option("--format", help="For llama-quantize's --tensor-type-file."),
    ] = "tensor-type-file",
    imatrix: ImatrixOption = None,
    mla: MlaOption = "split",
    leave_out: LeaveOutOption = None,
    force: ForceOption = False,
) -> None:
    """Write a list with which llama-quantize gives a model's tensors the types of a recipe.

    The list has every tensor that llama-quantize quantizes. Give llama-quantize a quantized type,
    such as Q4_K_M: with F16 or BF16 it ignores the list.
    """
    from dynquant.inputs import read_inputs
    from dynquant.plan.apply import apply_recipe, exported_tensor_types

    assert form == "tensor-type-file", "the only format"
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
    for warning in found.warnings:
        console.talk(f"warning: {warning}")
    write_text(
        exported_tensor_types(found, given.recipe), out, force=force, reads=given.recipe.files
    )
