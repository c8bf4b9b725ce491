"""`dynquant release`: what a publisher uploads beside a GGUF."""

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
            help="GGUFs of one model; of shards, any one, or the name they were made by.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to write; the GGUFs are linked there. Beside them if not given.",
            show_default=False,
        ),
    ] = None,
    repository: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME", help="Where the files will be on the Hub.", show_default=False
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="The source on the Hub, where the files do not tell it.",
            show_default=False,
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="The license by the Hub's names; the source's if not given.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what an earlier release left.")
    ] = False,
) -> None:
    """Write checksums, recipe, model card and plan of finished GGUFs, for an upload."""
    from dynquant.release.finished import open_finished
    from dynquant.release.folder import make_release, write_release

    made = make_release(
        [open_finished(path) for path in files],
        folder=folder,
        repository=repository,
        base_model=base_model,
        license_=license_,
        say=console.talk,
    )
    write_release(made, force=force)
    for lack in made.missing:
        console.warn(lack)
    if json:
        from dynquant.release.documents import release_json

        console.write_json(release_json(made))
    else:
        console.write("".join(f"{made.folder / name}\n" for name in made.names))
