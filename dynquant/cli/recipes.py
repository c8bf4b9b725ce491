"""`dynquant recipes`: lists the shipped recipes, or prints one."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import JsonOption, recipe_names


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Print this recipe's YAML; `built-in` prints the rules that precede every recipe.",
            show_default=False,
            autocompletion=recipe_names,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the shipped recipes, or print one as a template for your own."""
    from dynquant.recipe.loader import built_in_text, load_recipe, shipped_recipes

    if json:
        from dynquant.report.documents import recipes_json

        names = [name] if name else shipped_recipes()
        console.write_json(recipes_json(map(load_recipe, names)))
    elif name == "built-in":
        console.write(built_in_text())
    elif name is not None:
        console.write(load_recipe(name).text)
    else:
        from dynquant.report.tables import recipe_table

        console.show(recipe_table((r, load_recipe(r).description) for r in shipped_recipes()))
