"""Regular expressions that mean the same to llama-quantize (std::regex, ECMAScript) and to Python.

The two agree on what people write for tensor names. Where they do not, a pattern is refused: what
one of them does not know at all, and what each reads in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dynquant.errors import RecipeError
from dynquant.recipe.expressions import MAX_LETTERS, expression

# \D and \S and their like are among them, but llama-quantize lower-cases patterns.
_SAME_ESCAPES = frozenset("dDwWsSbBfnrtv0xu")

_QUANTIFIER = re.compile(r"\{\d+(,\d*)?\}")
_CLASS = re.compile(r"\[\^?(?P<content>(?:\\.|[^\]\\])*)\]")


def differences(pattern: str) -> list[str]:
    """Return what in a pattern is not the same in both languages, or is wrong in Python's."""
    if len(pattern) > MAX_LETTERS:
        return [f"it has {len(pattern)} letters, and at most {MAX_LETTERS} are read"]
    found = list(dict.fromkeys(_differences(pattern)))
    if not found:
        try:
            expression(f"/{pattern}/")
        except RecipeError as e:
            found.append(str(e))
    return found


def _differences(pattern: str) -> Iterator[str]:
    at = 0
    while at < len(pattern):
        c, rest = pattern[at], pattern[at:]
        if c == "\\":
            yield from _escape(rest)
            at += 2
        elif c == "[":
            known = _CLASS.match(rest)
            if known is None or not known["content"]:
                yield "[] and [^] are errors in Python; say what the class holds"
                at += len(rest) if known is None else known.end()
                continue
            yield from _class(known["content"])
            at += known.end()
        elif c == "{":
            known = _QUANTIFIER.match(rest)
            if known is None:
                yield "{ begins no count; write \\{ for the sign itself"
            at += known.end() - 1 if known else 1
        elif rest.startswith("(?") and rest[2:3] != ":":
            yield f"{rest[:3]} is not supported in both languages; write plain groups"
            at += 2
        else:
            if c in "*+?}" and rest[1:2] == "+":
                yield f"{rest[:2]} is possessive in Python and an error in ECMAScript"
            at += 1


def _escape(rest: str) -> Iterator[str]:
    sign = rest[1:2]
    if sign in "123456789" and sign:
        yield f"\\{sign} refers back, and means another thing where the group took nothing"
    elif sign.isalpha() and sign not in _SAME_ESCAPES:
        yield f"\\{sign} is not the same in both languages"


def _class(content: str) -> Iterator[str]:
    at = 0
    while at < len(content):
        rest = content[at:]
        if rest[0] == "\\":
            yield from _escape(rest)
            at += 2
            continue
        if rest[0] == "[":
            yield "[ inside [] begins a class of its own in one language; write \\["
        if rest[:2] in ("--", "&&", "||", "~~"):
            yield f"{rest[:2]} inside [] is an operator to be in Python"
        at += 1
