"""`dynquant release`: write the files that are published with a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import JsonOption


def release(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT.gguf...",
            help="GGUFs of one model; for a model in shards, any shard or the name without its"
            " number.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder to write to, with links to the GGUFs; default: the GGUFs' folder.",
            show_default=False,
        ),
    ] = None,
    repository: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="The Hub repository that the files will be uploaded to.",
            show_default=False,
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="The source model on the Hub; default: the one recorded in the files.",
            show_default=False,
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="The license, as the Hub names it; default: the license of the source.",
            show_default=False,
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="EVAL.json",
            help="The output of dynquant eval --json for these files; the model card gets its"
            " figures, and the folder a copy.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the files of an earlier release.")
    ] = False,
) -> None:
    """Write checksums, recipe, model card and plan of finished GGUFs, ready to upload."""
    from dynquant.release.evaluated import read_evaluated
    from dynquant.release.finished import open_finished
    from dynquant.release.folder import make_release, release_json, write_release

    contents = make_release(
        [open_finished(path) for path in files],
        folder=folder,
        repository=repository,
        base_model=base_model,
        license_=license_,
        evaluated=read_evaluated(evaluation) if evaluation else None,
        say=console.talk,
    )
    write_release(contents, force=force)
    for warning in contents.missing:
        console.warn(warning)
    if json:
        console.write_json(release_json(contents))
    else:
        console.write("".join(f"{contents.folder / name}\n" for name in contents.names))
