"""Regular expressions for tensor names, searched by RE2 in time proportional to the name.

Whoever writes a recipe chooses its expressions, and Python's own matcher may take longer than the
age of the universe for `(a+)+$` and a name of 63 letters. RE2 tries all ways at once, so no
expression can take long. It has no lookaround and no back references, which need a matcher that
tries one way after another; they are refused with the reason. Syntax:
https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Protocol

from dynquant.errors import RecipeError
from dynquant.untrusted import shown

MAX_LETTERS = 4096
"""Limit on the length of an expression; the longest in published lists have 200."""

_RE2: Any = import_module("re2")
"""google-re2, which has no types."""

_HINTS = {
    "invalid perl operator": "lookaround, comments and conditions are not supported",
    "bad repetition operator": "possessive repeats are not supported",
    "invalid repetition size": "repeats of more than 1000, also nested ones, are not supported",
}


class Expression(Protocol):
    """What can be searched in a name."""

    def search(self, name: str, /) -> object:
        """Return something true if the expression is found anywhere in the name."""
        ...


@cache
def _options() -> Any:
    options = _RE2.Options()
    options.log_errors = False  # RE2 would write to stderr
    return options


def expression(text: str) -> Expression:
    """Return a /regular expression/, slashes included, ready to be searched in names.

    Raises RecipeError, with the reason, if it is not valid or not supported.
    """
    pattern = text[1:-1]
    if len(pattern) > MAX_LETTERS:
        raise RecipeError(
            f"{shown(text)} has {len(pattern)} letters; a regular expression has at most"
            f" {MAX_LETTERS}"
        )
    try:
        return _RE2.compile(pattern, _options())
    except (_RE2.error, UnicodeError) as e:
        raise RecipeError(f"{shown(text)} is not a regular expression: {_reason(e)}") from e


def _reason(error: Any) -> str:
    """Return RE2's message, with a hint where something known is not supported."""
    found = error.args[0] if error.args else ""
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(error)
    hint = next((hint for start, hint in _HINTS.items() if text.startswith(start)), None)
    if text.startswith("invalid escape sequence") and text[-1:].isdigit():
        hint = "back references are not supported"
    return f"{text} ({hint})" if hint else text
