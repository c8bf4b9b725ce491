"""Options, reading and writing for commands that write a text file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console

OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="OUT", help="The file to write; default: stdout."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]

_MAX_BYTES = 1 << 20
"""Limit on the size of a list; the longest published ones have a tenth of it."""


def write_text(text: str, out: Path | None, *, force: bool, reads: Iterable[str] = ()) -> None:
    """Write text to a file, completely or not at all, or to stdout.

    reads: files that the command read, which are not replaced

    Raises RecipeError if the file exists and force is false, or if it cannot be written.
    """
    from dynquant.errors import RecipeError

    if out is None:
        console.write(text)
        return
    _refuse_existing(out, force=force)
    refuse_read(out, reads)
    part = out.with_name(f"{out.name}.part")
    try:
        part.write_text(text, "utf-8", newline="\n")
        part.replace(out)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise RecipeError(f"{out}: cannot be written: {e.strerror}") from e


def check_text(out: Path, *, force: bool) -> None:
    """Raise RecipeError if a file exists and force is false, or its folder does not exist.

    For commands that work for hours before they write.
    """
    from dynquant.errors import RecipeError

    _refuse_existing(out, force=force)
    if not out.parent.is_dir():
        raise RecipeError(f"{out.parent}: is not a folder; create it first, or name another output")


def _refuse_existing(out: Path, *, force: bool) -> None:
    from dynquant.errors import RecipeError

    if out.exists() and not force:
        raise RecipeError(f"{out}: exists; replace it with --force, or name another output")


def refuse_read(out: Path, reads: Iterable[str]) -> None:
    """Raise RecipeError if a file to write is one that the command reads."""
    from dynquant.errors import RecipeError

    for path in map(Path, reads):
        if path.exists() and out.exists() and path.samefile(out):
            raise RecipeError(f"{out}: is a recipe that this command reads; name another output")


def read_text(file: str) -> tuple[str, str]:
    """Return the text of a file, or of stdin for `-`, and its name in messages.

    Raises RecipeError if it cannot be read or is not text.
    """
    from dynquant.errors import RecipeError

    shown = "stdin" if file == "-" else file
    try:
        if file == "-":
            content = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                content = opened.read(_MAX_BYTES + 1)
    except OSError as e:
        raise RecipeError(f"{shown}: cannot be read: {e.strerror}") from e
    if len(content) > _MAX_BYTES:
        raise RecipeError(f"{shown}: more than {_MAX_BYTES} bytes; this is not a list of types")
    try:
        return content.decode("utf-8-sig"), shown
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise RecipeError(f"{shown}:{line}: not UTF-8 text; save it as UTF-8") from e
