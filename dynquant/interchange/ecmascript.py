"""Finds differences between the regular expressions of llama-quantize (ECMAScript) and of Python.

Both languages agree on the usual patterns for tensor names. A pattern is refused if one language
does not support a part of it, or if they read a part differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dynquant.errors import RecipeError
from dynquant.recipe.expressions import MAX_LETTERS, expression

# \D, \S and similar are included, although llama-quantize converts patterns to lower case.
_SAME_ESCAPES = frozenset("dDwWsSbBfnrtv0xu")

_QUANTIFIER = re.compile(r"\{\d+(,\d*)?\}")
_CLASS = re.compile(r"\[\^?(?P<content>(?:\\.|[^\]\\])*)\]")


def differences(pattern: str) -> list[str]:
    """Return the parts of a pattern that differ between both languages or are invalid in Python."""
    if len(pattern) > MAX_LETTERS:
        return [f"it has {len(pattern)} characters; the limit is {MAX_LETTERS}"]
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
                yield "[] and [^] are errors in Python; write the characters of the class"
                at += len(rest) if known is None else known.end()
                continue
            yield from _class(known["content"])
            at += known.end()
        elif c == "{":
            known = _QUANTIFIER.match(rest)
            if known is None:
                yield "{ without a count; write \\{ for a literal {"
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
        yield f"\\{sign} is a back reference, which differs for a group that matched nothing"
    elif sign.isalpha() and sign not in _SAME_ESCAPES:
        yield f"\\{sign} differs between ECMAScript and Python"


def _class(content: str) -> Iterator[str]:
    at = 0
    while at < len(content):
        rest = content[at:]
        if rest[0] == "\\":
            yield from _escape(rest)
            at += 2
            continue
        if rest[0] == "[":
            yield "[ inside [] begins a nested class in one of the languages; write \\["
        if rest[:2] in ("--", "&&", "||", "~~"):
            yield f"{rest[:2]} inside [] is reserved for an operator in Python"
        at += 1
