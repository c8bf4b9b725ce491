"""`dynquant split` and `dynquant merge`: the same GGUF in other files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import split_of

if TYPE_CHECKING:
    from dynquant.plan.shards import Split

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE.gguf", help="The GGUF; of shards, any one.")
]
OutOption = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="OUT.gguf", help="The file, or what shards begin with."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


def split(
    file: FileArgument,
    out: OutOption,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="At most so much of tensors in a shard: 48G, 46GiB."),
    ] = None,
    max_tensors: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most so many tensors in a shard.")
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Cut a GGUF into shards, every tensor and key as it is."""
    wanted = split_of(max_size, max_tensors, "--max-size")
    if wanted is None:
        raise typer.BadParameter("say how: --max-size SIZE, or --max-tensors N")
    _copy(file, out, wanted, force=force, quiet=quiet)


def merge(
    file: FileArgument, out: OutOption, force: ForceOption = False, quiet: QuietOption = False
) -> None:
    """Put the shards of a GGUF together in one file, every tensor and key as it is."""
    from dynquant.plan.shards import Split

    _copy(file, out, Split(), force=force, quiet=quiet)


def _copy(file: Path, out: Path, wanted: Split, *, force: bool, quiet: bool) -> None:
    from dynquant.conversion.write import convert_plan
    from dynquant.figures import gigabytes
    from dynquant.plan.copied import copied

    plan = copied(file, wanted)
    with console.progress_of(out.name, quiet=quiet) as progress:
        made = convert_plan(plan, out, force=force, progress=progress)
    for path in made.paths:
        console.talk(f"{path}: {gigabytes(path.stat().st_size)}", quiet=quiet)
