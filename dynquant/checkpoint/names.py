"""Long lists of tensor names, made short for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def grouped(names: Iterable[str]) -> list[str]:
    """Return the names with those that differ only in one number put together.

    `a.0.w`, `a.1.w`, `a.2.w`, `a.5.w` and `b.w` are `a.{0-2,5}.w` and `b.w`: a checkpoint whose
    every layer has the same problem is one line, not a thousand. Order of first appearance.
    """
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in names:
        found = _NUMBER.search(name)
        if found:
            key, number = (name[: found.start()], name[found.end() :]), int(found[0])
        else:
            key, number = (name, ""), 0
        groups.setdefault(key, []).append((number, name))
    return [
        f"{before}{{{','.join(_ranges([n for n, _ in group]))}}}{after}"
        if len(group) > 1
        else group[0][1]
        for (before, after), group in groups.items()
    ]


def _ranges(numbers: list[int]) -> Iterator[str]:
    run: list[int] = []
    for number in sorted(set(numbers)):
        if run and number != run[-1] + 1:
            yield _range(run)
            run = []
        run.append(number)
    yield _range(run)


def _range(run: list[int]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"
