"""What a pattern for tensor names selects, in a recipe's words, where that is certain.

Certain means: of all names that some GGUF architecture has, in as many layers as llama.cpp allows,
the pattern is found in exactly the matrices that the role and layers stand for. Models in several
parts (T5's enc.blk.0 and dec.blk.0) count where a list speaks of them; others are not for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from gguf import TENSOR_NAMES

from dynquant.arch.base import ModelTensor
from dynquant.errors import RecipeError
from dynquant.interchange.header import Header
from dynquant.interchange.layersets import numbers
from dynquant.quants.table import ALL
from dynquant.recipe.expressions import expression
from dynquant.recipe.protection import protection
from dynquant.recipe.roles import ROLES

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp."""

EVERYTHING = frozenset({".", ".*", ".+", "^.*", ".*$", "^.*$", "^.+$"})
"""Patterns that are found in every name."""

# The layer's number between its dots, `(0|[1-5][0-9])`, `[0-9]+` or `.*`, and what follows it. With
# only digits in it, it can match nothing but a whole number.
_LAYERED = re.compile(
    r"\^?blk\\?\.(?P<layers>\.[*+]|(?:\\d|[0-9()\[\]|?:+*-])+)\\?\.(?P<rest>[a-z(].*)"
)
_PLAIN = re.compile(r"\^?(?:\\?\.)?(?P<rest>[a-z_(][a-z_()|?:.\\]*(?:\.\*)?\$?)")
# After an unescaped dot, which could also stand for the number's last digit, the name goes on with
# a letter: so the dot is one.
_LETTER_FIRST = re.compile(r"[a-z]|\((?:\?:)?[a-z][^()|]*(?:\|[a-z][^()|]*)*\)")

_END = re.compile(r"(\.\*)?\$?$")

# More roles than this are a wildcard's doing, which says what it means better by itself.
_MAX_ROLES = 8


@dataclass(frozen=True)
class Meaning:
    """What a pattern selects: matrices of roles, in layers (all where there are none given).

    Without roles it is found in protected tensors only.
    """

    roles: tuple[str, ...]
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Known:
    """A name of the gguf package, `{bid}` in place of the layer."""

    name: str
    role: str
    protected: bool


def names_parts(patterns: Iterable[str]) -> bool:
    """Whether patterns speak of models in several parts, with layers enc.blk.0 and dec.blk.0."""
    return any(re.search(r"(enc|dec|\bv|\ba)\\?\.(blk)?", pattern) for pattern in patterns)


def meaning(pattern: str, *, parts: bool = False) -> Meaning | None:
    """Return what a pattern selects, or None where only the pattern itself says it.

    parts: whether the model may be one in several parts, whose layers `^blk` leaves out
    """
    layered = _LAYERED.fullmatch(pattern)
    found = layered or _PLAIN.fullmatch(pattern)
    if found is None or (count := _alternatives(_END.sub("", found["rest"]))) is None:
        return None
    layers = _layers(layered["layers"]) if layered else frozenset(range(MAX_LAYERS))
    if not layers or (layered and not _LETTER_FIRST.match(found["rest"])):
        return None
    hits = _hits(pattern, min(layers), parts=parts)
    if len(layers) == MAX_LAYERS and any(
        hits != _hits(pattern, layer, parts=parts) for layer in (10, 100)
    ):
        return None
    roles = tuple(dict.fromkeys(k.role for k in hits if not k.protected))
    if not roles:
        return Meaning(()) if hits else None
    if len(roles) > min(count, _MAX_ROLES) or not ROLES.issuperset(roles):
        return None
    whole = {k for k in _names(parts=parts) if k.role in roles and not k.protected}
    if whole != {k for k in hits if not k.protected}:
        return None
    every = len(layers) == MAX_LAYERS
    return Meaning(roles, () if every else tuple(numbers(layers).split(", ")))


def _hits(pattern: str, layer: int, *, parts: bool) -> list[_Known]:
    """Return the names that a pattern is found in, for one layer."""
    searched = expression(f"/{pattern}/")
    found = (k for k in _names(parts=parts))
    return [k for k in found if searched.search(k.name.replace("{bid}", str(layer)))]


def _layers(text: str) -> frozenset[int]:
    """Return the layers that an expression of digits stands for; none where it is another thing."""
    if text in (".*", ".+"):
        return frozenset(range(MAX_LAYERS))
    try:
        re.compile(text)
        number = expression(f"/^(?:{text})$/")
    except (re.error, RecipeError, OverflowError, RecursionError):
        return frozenset()
    if _depth_of_bars(text) == 0:
        return frozenset()
    return frozenset(n for n in range(MAX_LAYERS) if number.search(str(n)))


def _depth_of_bars(text: str) -> int | None:
    """Return the least depth in brackets that a | stands at; None without one."""
    depth, least = 0, None
    for c in text:
        depth += {"(": 1, ")": -1}.get(c, 0)
        if c == "|":
            least = depth if least is None else min(least, depth)
    return least


def _alternatives(text: str) -> int | None:
    """Return how many texts an expression without wildcards stands for; None if it has some.

    A dot counts as a letter: in names it is one, and the names found are compared in any case.
    """
    if _depth_of_bars(text) == 0 or re.search(r"[*+?\[\]{}^$]", text.replace("(?:", "(")):
        return None
    if re.search(r"\\[^.]", text):
        return None
    count = 1
    for group in re.findall(r"\((?:\?:)?([^()]*)\)", text):
        count *= group.count("|") + 1
    nested = re.sub(r"\((?:\?:)?[^()]*\)", "", text)
    return None if re.search(r"[()]", nested) else count


@cache
def _names(*, parts: bool) -> tuple[_Known, ...]:
    """Return every name that a GGUF architecture has, with the endings of weights and biases.

    parts: also of models whose layers are not called blk.0
    """
    return tuple(
        _Known(name, tensor.parts.role, protection(tensor) is not None)
        for template in dict.fromkeys(TENSOR_NAMES.values())
        if parts or "{bid}" not in template or template.startswith("blk.")
        for name in (f"{template}.weight", f"{template}.bias")
        for tensor in [ModelTensor(name.replace("{bid}", "0"), Header((256, 256), ALL["F32"]))]
    )
