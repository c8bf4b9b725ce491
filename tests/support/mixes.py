"""Reads tests/references/mixes.json, the types that `llama-quantize` chooses.

The file is made by make_mix_references.py. For each model it contains the keys that affect types,
the tensors, and the type of each tensor in each mix, without and with an imatrix:

    models.<model>.keys              `<architecture>.expert_count` and the like
    models.<model>.tensors           by role: shape, slowest dimension first, and layers
    models.<model>.floats            roles that are stored in F32, and remain F32
    models.<model>.needs_imatrix     the mixes that llama-quantize refuses without an imatrix
    models.<model>.types.<mix>       one entry, or two if the imatrix makes a difference

An entry has the type of most tensors under "", and the tensors of each other type under its name,
such as `output attn_v:0-3,6` (roles, with the numbers of layers). If the mix is refused, the entry
is the reason.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from places import REFERENCES

from dynquant.arch.base import Model, ModelTensor
from dynquant.arrays import U8
from dynquant.keys import f32, u32
from dynquant.quants import ALL, QuantType
from dynquant.recipe.facts import facts_of
from dynquant.recipe.match import assign
from dynquant.recipe.rules import Recipe

REFERENCE = REFERENCES / "mixes.json"

Entry = dict[str, str] | str


@dataclass(frozen=True)
class Shapes:
    """A model for llama-quantize: keys without the prefix of the architecture, and tensors.

    tensors: by role: shape, slowest dimension first, and the layers that have it, such as `0-3,7`;
             none for a tensor outside the layers
    floats:  roles that are stored in F32, as converters store norms and routers
    """

    architecture: str
    keys: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], str]]
    floats: tuple[str, ...]

    def named(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        """Yield name, shape and whether it is stored in F32."""
        for role, (shape, layers) in self.tensors.items():
            for name in names(role, layers):
                yield name, shape, role in self.floats


def names(role: str, layers: str) -> list[str]:
    """Return the names of a role's tensors in layers such as `0-3,7`, or outside the layers."""
    if not layers:
        return [f"{role}.weight"]
    return [f"blk.{i}.{role}.weight" for i in numbers(layers)]


def numbers(ranges: str) -> list[int]:
    """Return the numbers of `0-3,7`."""
    found: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as `0-3,7`."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and parts[-1][-1] == n - 1:
            parts[-1][1:] = [n]
        else:
            parts.append([n])
    return ",".join("-".join(map(str, part)) for part in parts)


def packed(types: dict[str, str]) -> dict[str, str]:
    """Return an entry of the types by tensor name."""
    most = Counter(types.values()).most_common(1)[0][0]
    layers: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, type_ in types.items():
        if type_ != most:
            place, _, rest = name.removesuffix(".weight").rpartition(".")
            layers[type_][rest] += [int(place.removeprefix("blk."))] if place else []
    return {"": most} | {
        type_: " ".join(f"{role}:{ranges(n)}" if n else role for role, n in by_role.items())
        for type_, by_role in layers.items()
    }


def unpacked(entry: dict[str, str], all_names: Iterable[str]) -> dict[str, str]:
    """Return the types by tensor name, in the order of the names."""
    given = dict.fromkeys(all_names, entry[""])
    for type_, words in entry.items():
        for word in words.split() if type_ else ():
            role, _, layers = word.partition(":")
            given |= dict.fromkeys(names(role, layers), type_)
    return given


@cache
def reference() -> dict[str, Any]:
    """Return the content of the file."""
    return json.loads(REFERENCE.read_text())


@cache
def shapes(model: str) -> Shapes:
    """Return a model of the file."""
    stored = reference()["models"][model]
    tensors = {name: (tuple(shape), layers) for name, (shape, layers) in stored["tensors"].items()}
    return Shapes(stored["architecture"], stored["keys"], tensors, tuple(stored["floats"]))


def peer_types(model: str, mix: str, *, importance: bool) -> dict[str, str] | str:
    """Return llama-quantize's type of each tensor, or why it refuses the mix for the model."""
    found = reference()["models"][model]["types"][mix]
    entry: Entry = found[importance] if isinstance(found, list) else found
    if isinstance(entry, str):
        return entry
    named = list(shapes(model).named())
    given = unpacked(entry, (name for name, _, _ in named))
    return given | dict.fromkeys((name for name, _, floating in named if floating), "F32")


def peer_needs_imatrix(model: str, mix: str) -> bool:
    """Return whether llama-quantize refuses the mix without an imatrix."""
    return mix in reference()["models"][model]["needs_imatrix"]


@dataclass(frozen=True)
class Unread:
    """A source with a shape only; reading it is an error."""

    shape: tuple[int, ...]
    stored: QuantType

    def read(self, start: int, stop: int, into: U8) -> None:
        raise AssertionError(f"matching read rows {start}..{stop} into {into.shape}")


@cache
def model(name: str) -> Model:
    """Return a model of the file as a model of dynquant."""
    known = shapes(name)
    return Model(
        architecture=known.architecture,
        keys={
            f"{known.architecture}.{key}": f32(value) if isinstance(value, float) else u32(value)
            for key, value in known.keys.items()
        },
        tensors=tuple(
            ModelTensor(tensor, Unread(shape, ALL["F32" if floating else "F16"]))
            for tensor, shape, floating in known.named()
        ),
        ignored={},
    )


def our_types(name: str, recipe: Recipe, *, importance: bool) -> dict[str, str]:
    """Return a recipe's type of each tensor, by name."""
    built = model(name)
    given = assign(recipe, built.tensors, facts_of(built, importance=importance))
    return {tensor: a.type.name for tensor, a in given.assignments.items()}
