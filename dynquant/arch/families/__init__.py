"""The families, a module each: `FAMILIES` names config.json's `architectures` it describes.

A module here is found by being here; nothing lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from dynquant.arch.base import Architecture

Family = Callable[[Mapping[str, Any], str], Architecture]
"""Describe a config.json; the text begins every message. Raises ArchitectureError."""


@cache
def families() -> dict[str, Family]:
    """Return who describes which of config.json's `architectures`, sorted by name."""
    found: dict[str, Family] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").FAMILIES
    return dict(sorted(found.items()))
