"""`dynquant recipe resolve`: writes a recipe and those that it extends as one file."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli.options import recipe_names
from dynquant.cli.text_files import ForceOption, OutOption, write_text


def resolve(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A shipped recipe or a YAML file.",
            autocompletion=recipe_names,
        ),
    ],
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Write a recipe and all recipes that it extends as one file, which gives the same types.

    A recipe that extends no other is written unchanged. Otherwise, comments are not kept.
    """
    from dynquant.recipe.loader import load_recipe
    from dynquant.recipe.resolved import resolved_text

    loaded = load_recipe(recipe)
    write_text(resolved_text(loaded), out, force=force, reads=loaded.files)
