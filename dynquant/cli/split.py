"""`dynquant split` and `dynquant merge`: cut a GGUF into shards, or join them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import OutOption, split_of

if TYPE_CHECKING:
    from dynquant.plan.shards import Split

FileArgument = Annotated[
    Path,
    typer.Argument(metavar="FILE.gguf", help="The GGUF; for a model in shards, any one of them."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def split(
    file: FileArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.gguf",
            help="The output; its shards are named OUT-00001-of-00003.gguf and so on.",
        ),
    ],
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The most bytes of tensors in a shard: 48G, 46GiB."),
    ] = None,
    max_tensors: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The most tensors in a shard.")
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Cut a GGUF into shards; tensors and keys do not change."""
    wanted = split_of(max_size, max_tensors, "--max-size")
    if wanted is None:
        raise typer.BadParameter("give --max-size SIZE or --max-tensors N, or both")
    _copy(file, out, wanted, force=force, quiet=quiet)


def merge(
    file: FileArgument,
    out: OutOption,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Join the shards of a GGUF in one file; tensors and keys do not change."""
    from dynquant.plan.shards import Split

    _copy(file, out, Split(), force=force, quiet=quiet)


def _copy(file: Path, out: Path, wanted: Split, *, force: bool, quiet: bool) -> None:
    from dynquant.conversion.write import convert_plan
    from dynquant.figures import size_text
    from dynquant.plan.copied import copied

    plan = copied(file, wanted)
    with console.progress_of(out.name, quiet=quiet) as progress:
        made = convert_plan(plan, out, force=force, progress=progress)
    for path in made.paths:
        console.talk(f"{path}: {size_text(path.stat().st_size)}", quiet=quiet)
