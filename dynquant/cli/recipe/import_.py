"""`dynquant recipe import`: converts a list of another tool to a recipe."""

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
            help="The file to read, - for stdin; for custom-q also the list itself.",
        ),
    ],
    form: Annotated[
        Literal["tensor-type-file", "custom-q", "thireus"],
        typer.Option(
            "--format",
            help="The format: llama-quantize's --tensor-type-file, ik_llama.cpp's --custom-q, or a"
            " .recipe of Thireus' GGUF-Tool-Suite.",
        ),
    ],
    default: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="The type of tensors without a pattern.", show_default=False
        ),
    ] = None,
    extends: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="The recipe for tensors that no pattern matches: a shipped one, or a path from"
            " OUT's folder.",
            show_default=False,
        ),
    ] = None,
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Convert a list of PATTERN=TYPE to a recipe, in the same order.

    Patterns for a role, with or without layers, become rules with `role` and `layers`; others stay
    regular expressions.
    """
    if default is not None and extends is not None:
        raise typer.BadParameter("give --default or --extends, not both", param_hint="--default")
    from dynquant.errors import EncodeError, RecipeError
    from dynquant.interchange.item_lists import recipe_of_custom_q, recipe_of_thireus
    from dynquant.interchange.items import Base
    from dynquant.interchange.tensor_types import recipe_of_tensor_types
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
