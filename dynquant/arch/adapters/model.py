"""A separate adapter as a model: the tensors and keys of a GGUF that llama.cpp applies.

    NAME.lora_a  [rank, inputs]    and for experts [experts, rank, inputs]
    NAME.lora_b  [outputs, rank]   and for experts [experts, outputs, rank]
    token_embd.weight.lora_a [tokens, rank], token_embd.weight.lora_b [width, rank]

llama.cpp multiplies their product by adapter.lora.alpha / rank (llama-adapter.cpp).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dynquant.arch.adapters.applied import is_applied
from dynquant.arch.adapters.folder import Adapter, Misfits, Module
from dynquant.arch.adapters.low_rank import LowRank, Marker, stacked, through, times, zeros
from dynquant.arch.adapters.merge import inseparable
from dynquant.arch.adapters.names import TableNames
from dynquant.arch.adapters.settings import CONFIG
from dynquant.arch.base import Architecture, Model, ModelTensor, TensorName
from dynquant.arch.metadata import general_keys
from dynquant.arch.wanted_tensors import Spelling, Wanted, wanted_of
from dynquant.checkpoint.packed import Weight
from dynquant.errors import AdapterError
from dynquant.keys import Keys, f32, string
from dynquant.name_lists import grouped
from dynquant.tensors import TensorSource
from dynquant.transforms import transposed

BASE_KEY = "dynquant.base_config_sha256"
"""The hash of the base's config.json, from which the order of rows follows."""

_INSTEAD = "merge the adapter instead: convert MODEL --merge-adapter FOLDER"


@dataclass(frozen=True)
class Changed:
    """A stored weight of the base, of which only the change is known."""

    module: Module

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.module.shape

    @property
    def change(self) -> LowRank:
        """The change; its factor is the one that llama.cpp divides by the rank."""
        return LowRank(self.module.left, self.module.right, self.module.alpha)

    def source(self) -> TensorSource:
        """Return a source without rows."""
        return Marker(self.change)


def adapter_model(adapter: Adapter, architecture: Architecture, base_sha256: str) -> Model:
    """Return an adapter as a model whose tensors are its factors.

    base_sha256: of the base's config.json

    Raises AdapterError with all modules that the base does not have, that have another shape, or
    to which llama.cpp does not apply an adapter.
    """
    names = TableNames(architecture)
    found = {module.path: names.of_module(module.path) for module in adapter.modules}
    stored: dict[str, Weight] = {
        name: Changed(module)
        for module in adapter.modules
        if (name := found[module.path]) is not None
    }
    spell = Spelling.of((), architecture.rows[0].stored)
    wanted = [
        want
        for want in wanted_of(architecture, spell, stored)
        if any(name in stored for name in want.stored_names)
    ]
    used = {name for want in wanted for name in (*want.stored_names, *want.again)}
    misfits = Misfits(adapter)
    for module in adapter.modules:
        if found[module.path] not in used:
            misfits.unknown(module)
    problems = list(_tied(adapter, architecture, stored))
    changes: dict[str, LowRank] = {}
    for want in wanted:
        wrong = list(_refused(adapter, architecture, want, stored))
        problems += wrong
        if _has_misfits(want, stored, misfits) or wrong:
            continue
        try:
            changes[want.name] = through(want.via, _change(want, stored))
        except AdapterError as e:
            problems += [
                f"{adapter.where}: {want.name} of {', '.join(_paths(want, stored))}: {m};"
                f" {_INSTEAD}"
                for m in e.messages
            ]
    AdapterError.raise_any([*misfits.messages(architecture), *problems])
    alpha = _common_alpha(changes.values())
    tensors = tuple(t for name, c in changes.items() for t in _tensors(name, c, alpha))
    keys = _general(adapter, architecture, tensors)
    return Model(
        architecture.name,
        keys
        | {
            "adapter.type": string("lora"),
            "adapter.lora.alpha": f32(alpha),
            BASE_KEY: string(base_sha256),
        },
        tensors,
        {},
        deviations=tuple(_copies(adapter)),
        files=(adapter.folder / CONFIG,),
    )


def _general(adapter: Adapter, architecture: Architecture, tensors: Iterable[ModelTensor]) -> Keys:
    """Return general.* of the adapter's README.md and name; it states no size."""
    found = general_keys(adapter.folder, {}, architecture.name, tensors)
    found.pop("general.size_label", None)
    return {**found, "general.type": string("adapter")}


def _tied(
    adapter: Adapter, architecture: Architecture, stored: Mapping[str, Weight]
) -> Iterator[str]:
    """Yield a message for each of two tied matrices, whose GGUF has only one."""
    weights = [stored.get(name) for name in architecture.tied or ()]
    modules = [weight.module for weight in weights if isinstance(weight, Changed)]
    for module in modules or inseparable(architecture, adapter):
        yield (
            f"{adapter.where}: {module.path}: the base uses the embedding as its output"
            f" matrix, and llama.cpp cannot apply an adapter to only one of them; {_INSTEAD}"
        )


def _paths(want: Wanted, stored: Mapping[str, Weight]) -> list[str]:
    """Return the modules that a tensor is made of, for messages."""
    weights = (stored.get(name) for name in want.stored_names)
    return grouped(w.module.path for w in weights if isinstance(w, Changed))


def _has_misfits(want: Wanted, stored: Mapping[str, Weight], misfits: Misfits) -> bool:
    """Note the modules whose shape is not that of the tensor; return whether there are any."""
    weights = [w for n in want.stored_names if isinstance(w := stored.get(n), Changed)]
    wrong = [w for w in weights if w.shape != want.shape and not want.is_joined]
    for weight in wrong:
        misfits.other_shape(weight.module, want.shape)
    return bool(wrong)


def _refused(
    adapter: Adapter, architecture: Architecture, want: Wanted, stored: Mapping[str, Weight]
) -> Iterator[str]:
    """Yield why an adapter of one tensor of the table cannot be a part of the GGUF."""
    where, paths = adapter.where, ", ".join(_paths(want, stored))
    if len(want.shape) != 2:
        return  # the shape is a misfit
    if want.is_joined or want.factor is not None:
        yield f"{where}: {paths}: {want.name} is computed of several stored tensors; {_INSTEAD}"
    elif not is_applied(architecture.name, want.name):
        yield (
            f"{where}: {paths}: llama.cpp does not apply adapters to {want.name} of"
            f" {architecture.name}; {_INSTEAD}"
        )
    weights = (stored.get(name) for name in want.stored_names)
    ranks = {w.module.rank for w in weights if isinstance(w, Changed)}
    if len(ranks) > 1:
        listed = ", ".join(map(str, sorted(ranks)))
        yield f"{where}: {paths}: the experts have different ranks ({listed}); {_INSTEAD}"


def _change(want: Wanted, stored: Mapping[str, Weight]) -> LowRank:
    """Return the change of a tensor; experts without an adapter have zeros."""
    there = {n: w.change for n in want.stored_names if isinstance(w := stored.get(n), Changed)}
    first = next(iter(there.values()))
    if not want.is_stack:
        return first
    rows, columns = want.shape
    none = LowRank(zeros((rows, first.rank)), zeros((first.rank, columns)), first.factor)
    parts = [there.get(name, none) for name in want.stored_names]
    return stacked([replace(times(c, c.factor / first.factor), factor=first.factor) for c in parts])


def _common_alpha(changes: Iterable[LowRank]) -> float:
    """Return the factor that most tensors have, as the file holds it."""
    (alpha, _), *_ = Counter(change.factor for change in changes).most_common(1)
    return float(np.float32(alpha))


def _tensors(name: str, change: LowRank, alpha: float) -> Iterator[ModelTensor]:
    """Yield the two factors of a tensor, with any other factor than the file's in the left one."""
    own = times(change, change.factor / alpha)
    a, b = own.right, own.left
    if TensorName.parse(name).role == "token_embd":
        a, b = own.left, transposed(own.right)
    yield ModelTensor(f"{name}.lora_a", a)
    yield ModelTensor(f"{name}.lora_b", b)


def _copies(adapter: Adapter) -> Iterator[str]:
    for copy in adapter.copies.values():
        yield (
            f"left out: {copy.name}: a copy of the base's weight that PEFT stores beside an adapter"
            " of it; if tokens were added, the adapter does not fit the base"
        )


def base_config_folder(base: str | Path) -> Path:
    """Return a base's folder if it can be one; raise AdapterError for a GGUF."""
    path = Path(base)
    if path.is_file() or path.suffix == ".gguf":
        raise AdapterError(
            f"{path}: a GGUF does not say how its rows were ordered; give the folder or hf:// name"
            " of the model that it was made from (only config.json is read)"
        )
    return path
