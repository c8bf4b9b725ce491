"""`dynquant recipe export`: a recipe as other tools are told."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dynquant.cli import console
from dynquant.cli.options import ImatrixOption, MlaOption, ModelArgument
from dynquant.cli.text_files import ForceOption, OutOption, write_text


def export(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")
    ],
    model: ModelArgument,
    out: OutOption = None,
    form: Annotated[
        Literal["tensor-type-file"],
        typer.Option("--format", help="For llama-quantize's --tensor-type-file."),
    ] = "tensor-type-file",
    imatrix: ImatrixOption = None,
    mla: MlaOption = "split",
    force: ForceOption = False,
) -> None:
    """Write the list with which llama-quantize gives a model's tensors the types of a recipe.

    It names every tensor that llama-quantize quantizes. Of its types, name a quantized one on its
    command line, such as Q4_K_M: with F16 or BF16 it does not look at the list.
    """
    from dynquant.arch.load import load_model
    from dynquant.importance.imatrix import read_imatrix
    from dynquant.interchange.tensor_types import tensor_types
    from dynquant.plan.resolve import resolve
    from dynquant.recipe.loader import load_recipe

    assert form == "tensor-type-file", "the only format"
    read = load_recipe(recipe)
    if imatrix:
        read_imatrix(imatrix)  # so that a file that is none is told
    given = imatrix is not None or read.importance == "required"
    found = resolve(load_model(model, mla=mla, needs_vocab=False), read, importance=given)
    for warning in found.warnings:
        console.talk(f"warning: {warning}")
    types = {name: given.type for name, given in found.assigned.assignments.items()}
    write_text(tensor_types(found.model.tensors, types), out, force=force)
