"""Lists of PATTERN=TYPE of ik_llama.cpp (`--custom-q`) and of Thireus' GGUF-Tool-Suite.

Both search patterns in the order of the list (std::regex, ECMAScript) and treat lines that begin
with # as comments.
"""

from __future__ import annotations

from collections.abc import Iterator

from dynquant.interchange.items import Base, Item, read_items, recipe_of


def recipe_of_custom_q(text: str, path: str, base: Base) -> str:
    """Return the YAML of a recipe for a `--custom-q` list: `PATTERN=TYPE,PATTERN=TYPE`.

    llama-quantize splits the list at every comma. Long lists are often kept in scripts, one item
    per line with comments, and joined with commas; that form is read as well.

    path: the list's name in messages

    Raises RecipeError with all items that cannot be converted, as read_items does.
    """
    lines = list(_lines(text))
    texts = [(n, item.strip()) for n, line in lines for item in line.split(",") if item.strip()]
    if len(lines) > 1:
        items = [Item(item, path, "line", number) for number, item in texts]
    else:
        items = [Item(item, path, "item", i) for i, (_, item) in enumerate(texts, 1)]
    return recipe_of(read_items(items), base, path, "--custom-q")


def recipe_of_thireus(text: str, path: str, base: Base) -> str:
    """Return the YAML of a recipe for a .recipe file of GGUF-Tool-Suite, made by a program.

        ## Multi-headed attention parameters
        ^blk\\.([0-9]|[1-5][0-9]|60)\\.attn_kv_b\\.weight$=q8_0

    Comments at the end count types and sizes. Every tensor of the model has a line, including
    those that are F32 in every file.

    path: the file's name in messages

    Raises RecipeError with all lines that cannot be converted, as read_items does.
    """
    items = [Item(line, path, "line", number) for number, line in _lines(text)]
    return recipe_of(read_items(items), base, path, "GGUF-Tool-Suite")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line that is neither empty nor a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        if (stripped := line.strip()) and not stripped.startswith("#"):
            yield number, stripped
