"""`dynquant recipe schema`: prints the JSON Schema of recipes."""

from __future__ import annotations

from dynquant.cli import console


def schema() -> None:
    """Print the JSON Schema of recipes, with which an editor completes and checks them.

    Save it beside your recipes as recipe.schema.json, and begin each with
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from dynquant.recipe.schema import recipe_schema

    console.write_json(recipe_schema())
