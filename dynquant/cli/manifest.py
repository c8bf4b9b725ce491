"""`dynquant manifest`: the record that a conversion writes beside its output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console


def manifest(
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT.gguf",
            help="A converted file, any of its shards, or the manifest itself.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of manifests instead.")
    ] = False,
) -> None:
    """Print the manifest of a converted file.

    Checks that the manifest is well-formed; `verify` compares it with the file.
    """
    from dynquant.conversion.manifest import (
        find_manifest,
        manifest_schema,
        manifest_text,
        read_manifest,
    )

    if schema == (out is not None):
        raise typer.BadParameter("name either a file or --schema", param_hint="OUT.gguf")
    if out is None:
        console.write_json(manifest_schema())
    else:
        console.write(manifest_text(read_manifest(find_manifest(out))))
