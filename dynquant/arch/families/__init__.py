"""The families, one module each.

`FAMILIES` of a module maps config.json's `architectures` to functions, and `GRAPHS` maps the
architectures of GGUFs to what their graphs require. Modules in this folder are found automatically;
there is no list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.gguf_files.graph import GGUFGraph

Family = Callable[[Mapping[str, Any], str], Architecture]
"""Describes a config.json, given its path to begin messages with. Raises ArchitectureError."""


@cache
def families() -> dict[str, Family]:
    """Return the function for each of config.json's `architectures`, sorted by name."""
    found: dict[str, Family] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").FAMILIES
    return dict(sorted(found.items()))


@cache
def graphs() -> dict[str, GGUFGraph]:
    """Return what the graph of each architecture of a GGUF requires, sorted by name."""
    found: dict[str, GGUFGraph] = {}
    for module in iter_modules(__path__):
        found |= getattr(import_module(f"{__name__}.{module.name}"), "GRAPHS", {})
    return dict(sorted(found.items()))
