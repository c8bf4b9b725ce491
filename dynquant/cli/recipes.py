"""`dynquant recipes`: lists the shipped recipes, or prints one."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli import console


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Print this recipe's YAML; `built-in` prints the rules that precede every recipe.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the shipped recipes, or print one as a template for your own."""
    from dynquant.recipe.loader import built_in_text, load_recipe, shipped_recipes

    if name == "built-in":
        console.write(built_in_text())
        return
    if name is not None:
        console.write(load_recipe(name).text)
        return
    from dynquant.report.tables import recipe_table

    console.show(recipe_table((r, load_recipe(r).description) for r in shipped_recipes()))
