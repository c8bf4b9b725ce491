"""`dynquant inspect`: the keys and tensors of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import JsonOption


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE.gguf", help="The file to read.")],
    json: JsonOption = False,
) -> None:
    """Print the keys and tensors of a GGUF file."""
    from dynquant.checkpoint.gguf import read_gguf
    from dynquant.checkpoint.gguf_shards import first_file
    from dynquant.checkpoint.hub import is_hub_name
    from dynquant.errors import CheckpointError

    if is_hub_name(file):
        raise CheckpointError(
            f"{file}: inspect reads files on disk only; download it with `hf download`, or use"
            " `dynquant plan`"
        )
    found = read_gguf(first_file(Path(file)))
    if json:
        from dynquant.report.documents import file_json

        console.write_json(file_json(found))
    else:
        from dynquant.report.tables import file_tables

        console.show(file_tables(found))
