"""Writes recipes as YAML in the style of handwritten ones, without redundant keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dynquant.recipe.schema import EDITOR_LINE
from dynquant.recipe.yaml_text import quoted

_COLUMNS = 100


@dataclass(frozen=True)
class WrittenRule:
    """A rule to write.

    layers:   items of the list, in the notation of recipes
    feedback: a YAML value, or ""
    comment:  at the end of the line with the type
    """

    type: str
    roles: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    override: bool = False
    optional: bool = False
    feedback: str = ""
    comment: str = ""

    def lines(self) -> Iterator[str]:
        """Yield the rule's lines under `rules:`."""
        dash = "  - "
        for key, values in (
            ("role", tuple(map(quoted, self.roles))),
            ("layers", self.layers),
            ("name", tuple(map(quoted, self.names))),
        ):
            if values:
                yield from _wrapped(f"{dash}{key}: ", values)
                dash = "    "
        comment = f"  # {_printable(self.comment)}" if self.comment else ""
        yield f"{dash}type: {self.type}{comment}"
        if self.feedback:
            yield f"    feedback: {self.feedback}"
        if self.override:
            yield "    override: true"
        if self.optional:
            yield "    optional: true"


def recipe_text(
    comments: Iterable[str],
    keys: Iterable[tuple[str, str]],
    rules: Sequence[WrittenRule],
    more: Iterable[tuple[str, str]] = (),
) -> str:
    """Return a recipe's YAML.

    comments: lines at the top; keys, more: keys before and after the rules, with YAML values
    """
    lines = [EDITOR_LINE]
    lines += [f"# {_printable(line)}".rstrip() for line in comments]
    lines += ["dynquant: 1", *(f"{key}: {value}" for key, value in keys)]
    if rules:
        lines += ["", "rules:"]
        for rule in rules:
            lines += [*rule.lines(), ""]
        lines.pop()
    rest = [f"{key}: {value}" for key, value in more]
    return "\n".join([*lines, *([""] if rest else []), *rest]) + "\n"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _wrapped(start: str, values: Sequence[str]) -> Iterator[str]:
    """Yield the lines of one value or of a list."""
    if len(values) == 1 and not values[0].startswith("{"):
        yield start + values[0]
        return
    line, indent = start + "[", " " * (len(start) + 1)
    for i, value in enumerate(values):
        end = "]" if i == len(values) - 1 else ","
        if i and len(line) + 1 + len(value) + len(end) > _COLUMNS:
            yield line
            line = indent
        elif i:
            line += " "
        line += value + end
    yield line
