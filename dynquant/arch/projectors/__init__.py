"""The projectors, a page each: what llama.cpp needs beside a language model to see and to hear.

A page describes the towers of some classes of config.json. Its rows, keys and transforms are like
those of a family's page, and the file's architecture is `clip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, cast

from dynquant.arch.towers.whole import Projector


@cache
def projectors() -> dict[str, Projector]:
    """Return the projector for each of config.json's `architectures`, sorted by name.

    A class with several kinds of towers has a projector for each: `class/kind of the tower`.
    """
    found: dict[str, Projector] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").PROJECTORS
    return dict(sorted(found.items()))


def find_projector(name: str, config: Mapping[str, Any]) -> Projector | None:
    """Return the projector of a class, by the kind of its vision encoder if it has several.

    config: config.json, with the kind of the encoder
    """
    vision: object = config.get("vision_config")
    settings = cast("dict[str, object]", vision) if isinstance(vision, dict) else {}
    known = projectors()
    return known.get(f"{name}/{settings.get('model_type')}") or known.get(name)


@cache
def refused() -> dict[str, str]:
    """Return classes whose projector llama.cpp does not compute, with the reason."""
    found: dict[str, str] = {}
    for module in iter_modules(__path__):
        found |= getattr(import_module(f"{__name__}.{module.name}"), "REFUSED", {})
    return found
