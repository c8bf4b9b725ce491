"""Compare a file's keys with those that its model implies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from gguf import GGUFValueType

from dynquant.arch.base import Model
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.figures import counted
from dynquant.keys import KeyValue
from dynquant.untrusted import shown

_OTHER = ("general.", "dynquant.", "quantize.", "split.", "adapter.")
"""Groups that depend on the conversion, or on names of folders."""

_SHOWN = 8
"""Differences that a warning names."""


@dataclass(frozen=True)
class ComparedKeys:
    """A warning for keys that differ from the model's, and what was compared."""

    warnings: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()


NOTHING = ComparedKeys()
"""Of a file that is another model's."""


def compare_keys(shards: Shards, source: Model, model: str) -> ComparedKeys:
    """Compare the keys of a file with those of its model.

    source: the model; model: its name in messages
    """
    theirs = {n: v for n, v in source.keys.items() if not n.startswith(_OTHER)}
    # A model that is read without its tokenizer has no keys of that group.
    groups = {_group(name) for name in theirs}
    ours = {
        n: v for n, v in shards.keys.items() if _group(n) in groups and not n.startswith(_OTHER)
    }
    found = [*_differences(ours, theirs)]
    checked = (f"against {model}: {counted(len(theirs), 'key')}",)
    if not found:
        return ComparedKeys((), checked)
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    warning = (
        f"{shards.path}: keys differ from those of {model}: {'; '.join(found[:_SHOWN])}{more}; they"
        " were set (`--set`, `metadata` of a recipe), or the file is of another version"
    )
    return ComparedKeys((warning,), checked)


def _group(name: str) -> str:
    return name.partition(".")[0]


def _differences(ours: Mapping[str, KeyValue], theirs: Mapping[str, KeyValue]) -> Iterator[str]:
    for name in (*theirs, *(name for name in ours if name not in theirs)):
        mine, its = ours.get(name), theirs.get(name)
        if mine is None:
            yield f"{name} is missing"
        elif its is None:
            yield f"{name} is {_text(mine)}, and the model has none"
        elif _value(mine) != _value(its):
            yield f"{name} is {_text(mine)}, and {_text(its)} by the model"


def _value(key: KeyValue) -> object:
    """Return a value as a file holds it: numbers of float32 are rounded."""
    if GGUFValueType.FLOAT32 not in (key.type, key.sub_type):
        return key.value
    return np.asarray(key.value, np.float32).tolist()


def _text(key: KeyValue) -> str:
    if isinstance(key.value, tuple):
        return f"an array of {len(key.value)}"
    return shown(key.value)
