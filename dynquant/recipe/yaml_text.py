"""Values as YAML on one line, with quotes only where YAML needs them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

import yaml

_PLAIN = re.compile(r"[A-Za-z_][\w. -]*(?<! )")
"""Text that YAML reads without quotes in every context, including lists."""

_LAYERS = re.compile(r"-?[0-9][0-9.%+-]*")
"""Ranges of layers, such as 0-3, -4--1 and 12.5%-50%."""


def quoted(text: str) -> str:
    """Return text as a YAML scalar, quoted if necessary."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:  # `true` is not a text
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return '"' + "".join(escaped) + '"'


def on_one_line(value: Any) -> str:
    """Return a value as YAML: a truth, a number, a text, or a list or mapping of these."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")  # YAML 1.1 reads 1e-05 as a text
    if isinstance(value, str):
        is_plain = _LAYERS.fullmatch(value) and yaml.safe_load(value) == value
        return value if is_plain else quoted(value)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value).items()
        return "{" + ", ".join(f"{quoted(k)}: {on_one_line(v)}" for k, v in pairs) + "}"
    return "[" + ", ".join(map(on_one_line, value)) + "]"
