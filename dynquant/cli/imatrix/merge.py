"""`dynquant imatrix merge`: adds imatrix files of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import OutOption, QuietOption
from dynquant.cli.text_files import ForceOption


def merge(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE.gguf...",
            help="Imatrix files of one model, made from different texts.",
            show_default=False,
        ),
    ],
    out: OutOption,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Add imatrix files of one model, as if all texts had been read in one run."""
    from dynquant.cli.text_files import check_text
    from dynquant.errors import ImportanceError
    from dynquant.importance.merge import merge_imatrices

    check_text(out, force=force)
    if out.resolve() in {file.resolve() for file in files}:
        raise ImportanceError(f"{out}: is a file that this command reads; name another output")
    for warning in merge_imatrices(files, out):
        console.warn(warning, quiet=quiet)
    console.talk(f"{out}: written", quiet=quiet)
