"""SHA256SUMS, as coreutils' sha256sum writes and checks it."""

from __future__ import annotations

from collections.abc import Iterable

SUMS = "SHA256SUMS"

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r"})


def sums_text(files: Iterable[tuple[str, str]]) -> str:
    """Return a line for each file, given as its SHA-256 and its name.

    A name with a line break or a backslash is escaped, which a backslash before the hash says.
    """
    return "".join(_line(sha256, name) for sha256, name in files)


def _line(sha256: str, name: str) -> str:
    escaped = name.translate(_ESCAPES)
    mark = "\\" if escaped != name else ""
    return f"{mark}{sha256}  {escaped}\n"
