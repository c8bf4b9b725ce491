"""The list of `--custom-q` of ik_llama.cpp's llama-quantize: `PATTERN=TYPE,PATTERN=TYPE`.

Patterns are searched in the order of the list (std::regex, ECMAScript), which is split at every
comma. People keep long lists in scripts, an item a line with # before comments, and join them with
commas; that form is read as well.
"""

from __future__ import annotations

from dynquant.interchange.items import Base, Item, read_items, recipe_of


def recipe_of_custom_q(text: str, path: str, base: Base) -> str:
    """Return the YAML of the recipe that a list stands for.

    path: what messages call the list

    Raises RecipeError with all items that cannot be taken over, as read_items does.
    """
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if _says_something(line)]
    texts = [(n, item.strip()) for n, line in lines for item in line.split(",") if item.strip()]
    if len(lines) > 1:
        items = [Item(item, path, "line", number) for number, item in texts]
    else:
        items = [Item(item, path, "item", i) for i, (_, item) in enumerate(texts, 1)]
    return recipe_of(read_items(items), base, path, "--custom-q")


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")
