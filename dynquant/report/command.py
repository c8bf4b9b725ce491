"""The command that repeats an evaluation, as pages and cards show it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath

_OUTPUT = {
    **{"--cache": 1, "--html": 1, "--markdown": 1},
    **{"--json": 0, "--force": 0, "--quiet": 0, "-q": 0},
}
"""Options that determine where results go, not what they are, with the number of their values."""


def command_text(command: Sequence[str]) -> str:
    """Return a command for a shell, with a line for each option.

    It is portable: whoever wrote the document may not have made it so.
    """
    lines: list[list[str]] = [[]]
    for part in portable(command):
        if part.startswith("-") and len(part) > 1 and not _is_number(part):
            lines.append([])
        lines[-1].append(part)
    return " \\\n  ".join(map(shlex.join, lines))


def portable(command: Sequence[str]) -> Iterator[str]:
    """Yield the parts of a command that can be published.

    Options for the output are left out. Files with whole paths are named without their folders,
    which exist on one machine only.
    """
    parts = iter(command)
    for part in parts:
        option, equals, value = part.partition("=")
        if option in _OUTPUT:
            for _ in range(0 if equals else _OUTPUT[option]):
                next(parts, None)
        elif option.startswith("--") and equals:
            yield f"{option}={_name(value)}"
        else:
            yield _name(part)


def _name(part: str) -> str:
    """Return the name of a file that is given with its whole path; other parts unchanged."""
    path = PurePath(part)
    return path.name if path.is_absolute() and path.name else part


def _is_number(part: str) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True
