"""`dynquant recipe from-gguf`: writes a recipe with the types of a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli.text_files import ForceOption, OutOption, write_text


def from_gguf(
    file: Annotated[
        str, typer.Argument(metavar="FILE.gguf", help="The file to read, or one of its shards.")
    ],
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Write a recipe that gives every tensor of a model its type in a GGUF.

    The recipe is short: it uses roles, groups of roles, and ranges and patterns of layers.
    """
    from dynquant.checkpoint.hub import is_hub_name
    from dynquant.errors import CheckpointError
    from dynquant.interchange.from_gguf import recipe_of_gguf

    if is_hub_name(file):
        raise CheckpointError(
            f"{file}: from-gguf reads only local files; download it first (`hf download`)"
        )
    write_text(recipe_of_gguf(Path(file)), out, force=force)
