"""Short forms of long lists of tensor names, for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_NUMBER = re.compile(r"(?:(?<=\.)|(?<=\.shard_))(?:0|[1-9][0-9]{0,8})(?=\.)")


def grouped(names: Iterable[str]) -> list[str]:
    """Return the names, with one entry for all names that differ only in their numbers.

    `a.0.w`, `a.1.w`, `a.2.w`, `a.5.w` and `b.w` become `a.{0-2,5}.w` and `b.w`; experts of layers
    become `a.{3-60}.e.{0-255}.w`. So a problem of every layer is reported in one line, not in a
    thousand. Numbers after the second are treated as text. The order is that of first appearance.
    """
    groups: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in names:
        text: list[str] = []
        numbers: list[int] = []
        end = 0
        for found in list(_NUMBER.finditer(name))[:2]:
            text.append(name[end : found.start()])
            numbers.append(int(found[0]))
            end = found.end()
        groups.setdefault((*text, name[end:]), []).append(tuple(numbers))
    return [line for text, numbers in groups.items() for line in _lines(text, numbers)]


def _lines(text: tuple[str, ...], numbers: list[tuple[int, ...]]) -> Iterator[str]:
    """Yield entries for names of one text; first numbers with equal sets of second numbers join."""
    if len(text) == 1:
        yield from text * len(numbers)
        return
    if len(text) == 2:
        yield f"{text[0]}{_set(n for (n,) in numbers)}{text[1]}"
        return
    seconds: dict[int, list[int]] = {}
    for first, second in numbers:
        seconds.setdefault(first, []).append(second)
    firsts: dict[tuple[int, ...], list[int]] = {}
    for first, found in seconds.items():
        firsts.setdefault(tuple(sorted(set(found))), []).append(first)
    for found, same in firsts.items():
        yield f"{text[0]}{_set(same)}{text[1]}{_set(found)}{text[2]}"


def _set(numbers: Iterable[int]) -> str:
    """Return `7` for one number, `{0-2,5}` for several."""
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else "{" + ",".join(_ranges(found)) + "}"


def _ranges(numbers: list[int]) -> Iterator[str]:
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield _range(run)
            run = []
        run.append(number)
    yield _range(run)


def _range(run: list[int]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"
