"""Recipes of Thireus' GGUF-Tool-Suite: lines of PATTERN=TYPE, made by a program.

    ## Multi-headed attention parameters
    ^blk\\.([0-9]|[1-5][0-9]|60)\\.attn_kv_b\\.weight$=q8_0

Lines that begin with # are comments; the last ones count types and sizes. Every tensor of the model
has a line that takes it, those included that are F32 in every file.
"""

from __future__ import annotations

from dynquant.interchange.items import Base, Item, read_items, recipe_of


def recipe_of_thireus(text: str, path: str, base: Base) -> str:
    """Return the YAML of the recipe that a .recipe file stands for.

    path: what messages call the file

    Raises RecipeError with all lines that cannot be taken over, as read_items does.
    """
    items = [
        Item(line.strip(), path, "line", number)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return recipe_of(read_items(items), base, path, "GGUF-Tool-Suite")
