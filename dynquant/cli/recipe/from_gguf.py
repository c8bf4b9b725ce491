"""`dynquant recipe from-gguf`: the recipe that a GGUF's types follow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli.text_files import ForceOption, OutOption, write_text


def from_gguf(
    file: Annotated[
        str, typer.Argument(metavar="FILE.gguf", help="The file to read; of shards, any one.")
    ],
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Write the recipe that gives every tensor of a model the type it has in a GGUF.

    It is as short as it can be said: roles and groups of them, and ranges and patterns of layers.
    """
    from dynquant.checkpoint.hub import is_hub_name
    from dynquant.errors import CheckpointError
    from dynquant.interchange.from_gguf import recipe_of_gguf

    if is_hub_name(file):
        raise CheckpointError(f"{file}: from-gguf reads files on disk; fetch it (`hf download`)")
    write_text(recipe_of_gguf(Path(file)), out, force=force)
