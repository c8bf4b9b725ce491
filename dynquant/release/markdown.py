"""Markdown in which text of strangers stays text: names of tensors, models and files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*{}\[\]<>()#+!|~$&:]|(?<![^\W_])_|_(?![^\W_]))")
"""What Markdown may take for more than text; an underscore within a word (Q4_K) is none of it."""

_WHITE = re.compile(r"[\s\x00-\x1f\x7f]+")


def text(words: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", _line(words))


def code(words: str) -> str:
    """Return text as code, on one line, also in a table; `|` is then written `¦`."""
    line = _line(words).replace("|", "¦")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def block(lines: Iterable[str], language: str = "") -> list[str]:
    """Return lines of code set apart."""
    found = list(lines)
    longest = max((len(run) for line in found for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, *found, fence]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table of ready cells; a head that ends in > is set to the right."""
    rule = ["---:" if name.endswith(">") else "---" for name in head]
    lines = [[name.rstrip(">") for name in head], rule, *map(list, rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _line(words: str) -> str:
    return _WHITE.sub(" ", words).strip()
