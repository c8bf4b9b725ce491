"""`dynquant inspect`: the keys and tensors of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import JsonOption


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE.gguf",
            help="The file, also hf://ORG/MODEL/FILE.gguf or a URL of fsspec.",
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Print a line for each tensor instead.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Print the whole value of one key instead."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the keys and tensors of a GGUF file."""
    from dynquant.checkpoint.gguf import read_gguf
    from dynquant.checkpoint.gguf_shards import first_file
    from dynquant.checkpoint.remote.open_gguf import gguf_elsewhere
    from dynquant.report import documents, tables

    if sum((tensors, key is not None, json)) > 1:
        raise typer.BadParameter("give one of --tensors, --key and --json")
    found = read_gguf(gguf_elsewhere(file) or first_file(Path(file)))
    if json:
        console.write_json(documents.file_json(found))
    elif key is not None:
        console.write(tables.value_text(found, key) + "\n")
    elif tensors:
        console.show(tables.tensor_list(found))
    else:
        console.show(tables.file_tables(found))
