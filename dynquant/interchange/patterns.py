"""Converts a pattern for tensor names to roles and layers, if that is certain to be equivalent.

It is certain if, among all tensor names of all GGUF architectures, in as many layers as llama.cpp
allows, the pattern matches exactly the matrices of these roles and layers. Names of models in
several parts (T5's enc.blk.0 and dec.blk.0) are considered only if the list has patterns for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from gguf import TENSOR_NAMES

from dynquant.arch.base import ModelTensor
from dynquant.arrays import U8
from dynquant.errors import RecipeError
from dynquant.interchange.layersets import numbers
from dynquant.quants.table import ALL, QuantType
from dynquant.recipe.expressions import expression
from dynquant.recipe.protection import protection
from dynquant.recipe.roles import ROLES

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp."""

EVERYTHING = frozenset({".", ".*", ".+", "^.*", ".*$", "^.*$", "^.+$"})
"""Patterns that match every name."""

# The layer's number between its dots, `(0|[1-5][0-9])`, `[0-9]+` or `.*`, and the rest of the name.
# An expression of digits between dots matches only a whole number.
_LAYERED = re.compile(
    r"\^?blk\\?\.(?P<layers>\.[*+]|(?:\\d|[0-9()\[\]|?:+*-])+)\\?\.(?P<rest>[a-z(].*)"
)
_PLAIN = re.compile(r"\^?(?:\\?\.)?(?P<rest>[a-z_(][a-z_()|?:.\\]*(?:\.\*)?\$?)")
# An unescaped dot could also match the last digit of the number. If a letter follows, the dot can
# only be the dot of the name.
_LETTER_FIRST = re.compile(r"[a-z]|\((?:\?:)?[a-z][^()|]*(?:\|[a-z][^()|]*)*\)")

_END = re.compile(r"(\.\*)?\$?$")

# More roles than this come from a wildcard; the pattern is then clearer than a list of roles.
_MAX_ROLES = 8


@dataclass(frozen=True)
class Header:
    """The source of a ModelTensor of which only name, shape and type are known."""

    shape: tuple[int, ...]
    stored: QuantType

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fail: recipes never read rows."""
        raise AssertionError(f"rows {start}..{stop} of a header, into {into.nbytes} bytes")


@dataclass(frozen=True)
class Meaning:
    """The matrices that a pattern matches, by role and layer; no layers given means all.

    Without roles, the pattern matches only protected tensors.
    """

    roles: tuple[str, ...]
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Known:
    """A name of the gguf package, with `{bid}` in place of the layer."""

    name: str
    role: str
    protected: bool


def names_parts(patterns: Iterable[str]) -> bool:
    """Whether patterns are for models in several parts, with layers enc.blk.0 and dec.blk.0."""
    return any(re.search(r"(enc|dec|\bv|\ba)\\?\.(blk)?", pattern) for pattern in patterns)


def meaning(pattern: str, *, parts: bool = False) -> Meaning | None:
    """Return the roles and layers of a pattern, or None if they are not certain.

    parts: whether the model may have several parts, whose layers `^blk` does not match
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
    """Return the names that a pattern matches, for one layer."""
    searched = expression(f"/{pattern}/")
    found = (k for k in _names(parts=parts))
    return [k for k in found if searched.search(k.name.replace("{bid}", str(layer)))]


def _layers(text: str) -> frozenset[int]:
    """Return the layers that an expression of digits matches; an empty set if it is invalid."""
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
    """Return the least depth in brackets of a |, or None without one."""
    depth, least = 0, None
    for c in text:
        depth += {"(": 1, ")": -1}.get(c, 0)
        if c == "|":
            least = depth if least is None else min(least, depth)
    return least


def _alternatives(text: str) -> int | None:
    """Return the number of texts that an expression matches; None if it has wildcards.

    A dot counts as a literal dot: the caller compares the matched names in any case.
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
    """Return the names of all GGUF architectures, with the suffixes of weights and biases.

    parts: whether to include models whose layers are not named blk.0
    """
    return tuple(
        _Known(name, tensor.parts.role, protection(tensor) is not None)
        for template in dict.fromkeys(TENSOR_NAMES.values())
        if parts or "{bid}" not in template or template.startswith("blk.")
        for name in (f"{template}.weight", f"{template}.bias")
        for tensor in [ModelTensor(name.replace("{bid}", "0"), Header((256, 256), ALL["F32"]))]
    )
