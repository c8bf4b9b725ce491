"""The projectors, a page each: what llama.cpp needs beside a language model to see and to hear.

A page describes the towers of some classes of config.json. Its rows, keys and transforms are like
those of a family's page, and the file's architecture is `clip`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

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
