"""The summary of a CI job, in Markdown: files, sizes, errors and the result of each gate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dynquant.conversion.gates import Gate
from dynquant.errors import ReleaseError
from dynquant.figures import size_column
from dynquant.release.finished import Finished
from dynquant.release.markdown import ERROR_WORDS, code, file_table, role_table, table, text


def summary_of(model: Finished, sha256: Sequence[str], gates: Sequence[Gate] = ()) -> str:
    """Return the summary of a conversion: a section that can follow others.

    sha256: of each file
    """
    files = zip(model.paths, size_column(model.sizes), sha256, strict=True)
    lines = [
        f"## {text(model.stem)}",
        "",
        *file_table([model]),
        "",
        *_gates(gates),
        *role_table(model),
        "",
        *([ERROR_WORDS, ""] if model.loss else []),
        *table(
            ("file", "size>", "SHA-256"),
            ((code(path.name), size, code(h)) for path, size, h in files),
        ),
    ]
    return "\n".join(lines) + "\n\n"


def refused_summary(name: str, gates: Sequence[Gate]) -> str:
    """Return the summary of a conversion that a gate stopped before it started."""
    return "\n".join([f"## {text(name)}: not written", "", *_gates(gates)]) + "\n"


def check_summary(path: Path) -> None:
    """Raise ReleaseError if a summary cannot be added to a file, before a long conversion."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        raise ReleaseError(f"{path}: cannot be written: is not a file in a folder that exists")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ReleaseError(f"{path}: cannot be written: is not writable; name another file")


def add_summary(path: Path, section: str) -> None:
    """Add a section to a file; the file is created if it does not exist.

    Raises ReleaseError if it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(section)
    except OSError as e:
        raise ReleaseError(f"{path}: cannot be written: {e.strerror}; name another file") from e


def _gates(gates: Sequence[Gate]) -> list[str]:
    if not gates:
        return []
    rows = [(g.what, g.limit, g.found, "passed" if g.holds else "**failed**") for g in gates]
    return [*table(("gate", "limit>", "actual>", "result"), rows), ""]
