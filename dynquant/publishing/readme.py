"""README.md: front matter, people's text, and the part between two marks that dynquant writes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

from dynquant.errors import PublishError

CARD = "README.md"

BEGIN = "<!-- dynquant publish: begin; edit above or below, this part is replaced -->"
END = "<!-- dynquant publish: end -->"

_FRONT = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"^<!-- dynquant publish: (begin|end)\b.*-->[ \t]*\r?$", re.MULTILINE)
"""A mark is a whole line, which no name in the part can be: names are within lines."""

_UNITED = ("tags", "language")
"""Keys whose values are lists, to which every publication may add."""


@dataclass(frozen=True)
class Readme:
    """A card in its parts.

    front_text: the front matter as it stands, with its lines of dashes; "" if there is none
    above, below: text outside the marks; without marks, all text is above
    part: the text between the marks; None if there are no marks
    """

    front: Mapping[str, Any]
    front_text: str
    above: str
    part: str | None
    below: str


def read_readme(text: str, where: str) -> Readme:
    """Take a card apart; raise PublishError if its front matter or its marks are damaged."""
    found = _FRONT.match(text)
    front: Any = {}
    if found:
        try:
            front = yaml.safe_load(found[1])
        except yaml.YAMLError as e:
            reason = " ".join(str(e).split())
            raise PublishError(f"{where}: the front matter is not YAML: {reason}") from e
        front = {} if front is None else front
        if not isinstance(front, dict):
            raise PublishError(f"{where}: the front matter is not a list of keys; correct it")
    body = text[found.end() :] if found else text
    front_text = found[0] if found else ""
    marks = [*_MARK.finditer(body)]
    kinds = [mark[1] for mark in marks]
    if not marks:
        return Readme(cast("dict[str, Any]", front), front_text, body, None, "")
    if kinds != ["begin", "end"]:
        raise PublishError(
            f"{where}: the marks of dynquant publish are damaged ({', '.join(kinds)} instead of"
            " begin, end); correct them, or remove all of them with the text between"
        )
    begin, end = marks
    return Readme(
        cast("dict[str, Any]", front),
        front_text,
        body[: begin.start()],
        body[begin.end() : end.start()].replace("\r\n", "\n").strip("\n") + "\n",
        body[end.end() :].lstrip("\r\n"),
    )


def part_sha256(part: str) -> str:
    """Return the hash of the text between the marks."""
    return hashlib.sha256(part.encode("utf-8", "backslashreplace")).hexdigest()


def readme_text(before: Readme | None, front: Mapping[str, Any], part: str) -> str:
    """Return a card with a part replaced; everything else stays as it is."""
    if before and dict(before.front) == dict(front):
        head = before.front_text
    else:
        body = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, width=10_000)
        head = f"---\n{body}---\n"
    above = before.above.rstrip() if before else ""
    below = before.below if before else ""
    above = f"{above}\n\n" if above.strip() else "\n"
    return f"{head}{above}{BEGIN}\n{part}{END}\n" + (f"\n{below}" if below.strip() else "")


def merged_front(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    recorded: Mapping[str, str],
    *,
    where: str,
    force: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Return the front matter of a repository after a publication, and warnings.

    A value that a person changed in the repository stays, unless `force` is set. Lists are united.

    ours:     of the release
    theirs:   of the repository
    recorded: what publications wrote, as `value_text` gives it
    """
    found = dict(theirs)
    warnings: list[str] = []
    for key, value in ours.items():
        if key in _UNITED:
            found[key] = [*dict.fromkeys([*listed(theirs.get(key)), *listed(value)])]
        elif (
            key not in theirs
            or theirs[key] == value
            or value_text(theirs[key]) == recorded.get(key)
            or force
        ):
            found[key] = value
        else:
            warnings.append(
                f"{where}: keeps {key}: {theirs[key]!r}; the release has {value!r} (--force"
                " replaces it)"
            )
    return found, warnings


def value_text(value: Any) -> str:
    """Return a value of the front matter as JSON; dates and other values of YAML are texts."""
    return json.dumps(value, default=str, sort_keys=True)


def listed(value: Any) -> list[str]:
    """Return a value of the front matter as a list: one text is a list of one, none is empty."""
    if isinstance(value, list):
        return [str(v) for v in cast("list[Any]", value)]
    return [] if value is None else [str(value)]
