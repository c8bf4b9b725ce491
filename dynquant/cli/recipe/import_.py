"""`dynquant recipe import`: a recipe from what other tools are told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dynquant.cli.text_files import ForceOption, OutOption, read_text, write_text


def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="The file to read, - for stdin; of --custom-q also the list itself.",
        ),
    ],
    form: Annotated[
        Literal["tensor-type-file", "custom-q", "thireus"],
        typer.Option(
            "--format",
            help="What it is: llama-quantize's --tensor-type-file, ik_llama.cpp's --custom-q, or a"
            " .recipe of Thireus' GGUF-Tool-Suite.",
        ),
    ],
    default: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="The type of what no pattern takes.", show_default=False),
    ] = None,
    extends: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="The recipe that decides what no pattern takes: a shipped one, or a path from"
            " OUT's folder.",
            show_default=False,
        ),
    ] = None,
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Write the recipe that a list of PATTERN=TYPE stands for, in the same order.

    A pattern for a role, with or without layers, becomes a rule with these; others stay regular
    expressions.
    """
    if default is not None and extends is not None:
        raise typer.BadParameter("give it or --extends, not both", param_hint="--default")
    from dynquant.errors import EncodeError, RecipeError
    from dynquant.interchange.custom_q import recipe_of_custom_q
    from dynquant.interchange.items import Base
    from dynquant.interchange.tensor_types import recipe_of_tensor_types
    from dynquant.interchange.thireus import recipe_of_thireus
    from dynquant.quants.table import quant_type

    try:
        base = Base(quant_type(default) if default else None, extends, str(out or "recipe.yaml"))
    except EncodeError as e:
        raise RecipeError(f"--default: {e}") from e
    if form == "custom-q" and "=" in file and not Path(file).exists():
        text, shown = file, "custom-q"
    else:
        text, shown = read_text(file)
    make = {
        "tensor-type-file": recipe_of_tensor_types,
        "custom-q": recipe_of_custom_q,
        "thireus": recipe_of_thireus,
    }[form]
    write_text(make(text, shown, base), out, force=force)
