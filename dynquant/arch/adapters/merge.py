"""Adapters merged into the weights of a checkpoint, before a family's table looks at them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from dynquant.arch.adapters.applied import WITHOUT_OUTPUT
from dynquant.arch.adapters.folder import Adapter, Misfits, Module, open_adapter
from dynquant.arch.adapters.low_rank import LowRank, Merged
from dynquant.arch.adapters.names import Names, core
from dynquant.arch.base import Architecture
from dynquant.checkpoint.packed import Weight
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import AdapterError, Problems
from dynquant.keys import Keys, string
from dynquant.tensors import TensorSource, n_rows
from dynquant.transforms import read_weights
from dynquant.untrusted import parse_json

MERGED_KEY = "dynquant.merged_adapters"
"""A JSON list: name and hashes of each adapter, in the order in which they were merged."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class MergedWeight:
    """A weight of a checkpoint with the change of an adapter.

    where: the adapter and its module, which begin messages
    """

    base: Weight
    change: LowRank
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.base.shape

    def source(self) -> TensorSource:
        """Return the rows, in F32."""
        return Merged(self.base.source(), self.change, self.where)


def open_adapters(paths: Iterable[str | Path]) -> tuple[Adapter, ...]:
    """Open adapters; raise DynquantError with the problems of all of them."""
    problems = Problems()
    found = [problems.attempt(lambda path=path: open_adapter(path)) for path in paths]
    adapters = tuple(adapter for adapter in found if adapter)
    counts = Counter((a.sha256, a.config_sha256) for a in adapters)
    problems.add(
        *(
            f"{a.folder}: is given twice; an adapter is merged once"
            for a in {(a.sha256, a.config_sha256): a for a in adapters}.values()
            if counts[a.sha256, a.config_sha256] > 1
        )
    )
    problems.raise_any(AdapterError)
    return adapters


def merged_keys(adapters: Sequence[Adapter]) -> Keys:
    """Return the key that records merged adapters; none without adapters."""
    if not adapters:
        return {}
    listed = [
        {"name": a.name, "sha256": a.sha256, "config_sha256": a.config_sha256} for a in adapters
    ]
    return {MERGED_KEY: string(json.dumps(listed, separators=(",", ":")))}


def merged_names(record: str) -> list[str]:
    """Return the names of the adapters that the value of a file's key records; none if damaged."""
    try:
        found: object = parse_json(record)
    except ValueError:
        return []
    entries = cast("list[object]", found) if isinstance(found, list) else []
    named = [cast("dict[str, object]", e).get("name") for e in entries if isinstance(e, dict)]
    return [str(name) for name in named]


def merge(
    architecture: Architecture,
    stored: Mapping[str, Weight],
    tied: tuple[str, str] | None,
    adapters: Sequence[Adapter],
) -> dict[str, Weight]:
    """Return the weights with the changes of adapters, in order.

    stored: the weights of the language model by name; those of other parts are not among them
    tied:   the names of the output matrix and of the embedding that replaces it, as stored

    An adapter of only one of two tied matrices unties them, as PEFT does in training.

    Raises AdapterError with all modules that the model does not have or that have another shape.
    """
    weights = dict(stored)
    problems: list[str] = []
    for adapter in adapters:
        names = Names(weights)
        found = {module.path: names.of_module(module.path) for module in adapter.modules}
        apart = inseparable(architecture, adapter)
        problems += _inseparable(architecture, adapter, apart)
        if tied and tied[0] not in weights and tied[1] in weights:
            found |= _untie(weights, tied, found)
        misfits = Misfits(adapter)
        for module in adapter.modules:
            if module in apart:
                continue
            if (name := found[module.path]) is None:
                misfits.unknown(module)
                continue
            if module.shape != (shape := weights[name].shape):
                misfits.other_shape(module, shape)
                continue
            if module.path in adapter.copies:
                problems += _other_copy(adapter, module, stored.get(name))
            change = LowRank(module.left, module.right, module.scale)
            where = f"{adapter.where}: {module.path}"
            weights[name] = MergedWeight(weights[name], change, where)
        problems += misfits.messages(architecture)
    AdapterError.raise_any(problems)
    return weights


def _untie(
    weights: dict[str, Weight], tied: tuple[str, str], found: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Store the output matrix separately if an adapter changes it or the embedding.

    Returns the modules that change the output matrix.
    """
    head, embedding = tied
    heads = [path for path in found if core(f"{path}.weight") == core(head)]
    if not (heads or embedding in found.values()):
        return {}
    weights[head] = weights[embedding]
    return dict.fromkeys(heads, head)


def _inseparable(
    architecture: Architecture, adapter: Adapter, modules: Iterable[Module]
) -> Iterator[str]:
    """Yield a message for each of two tied matrices that llama.cpp's graph cannot separate."""
    for module in modules:
        yield (
            f"{adapter.where}: {module.path}: {architecture.name} uses the embedding as its output"
            " matrix, and llama.cpp cannot have an adapter of only one of them; train it without"
            " this module, or change both with PEFT's `merge_and_unload()`"
        )


def inseparable(architecture: Architecture, adapter: Adapter) -> list[Module]:
    """Return the modules of tied matrices for which the GGUF has one tensor, or two copies."""
    rows = architecture.rows
    tied: set[str] = set()
    if architecture.tied is None:
        ends = [row.stored for row in rows if row.name in ("token_embd.weight", "output.weight")]
        tied.update(name for name in ends if ends.count(name) > 1)
        if tied:
            tied.add("lm_head.weight")
    elif architecture.name in WITHOUT_OUTPUT or all(r.stored != architecture.tied[0] for r in rows):
        tied.update(architecture.tied)
    cores = set(map(core, tied))
    return [module for module in adapter.modules if core(f"{module.path}.weight") in cores]


def _other_copy(adapter: Adapter, module: Module, base: Weight | None) -> Iterator[str]:
    """Yield a message if the weight that PEFT stored beside an adapter is not the base's."""
    copy = adapter.copies[module.path]
    if base is None or not _equal(copy, base):
        yield (
            f"{adapter.where}: {copy.name} differs from the base, so tokens were added or the"
            " weight was trained, too; merge the adapter with PEFT's `merge_and_unload()`, or save"
            " it with `save_embedding_layers=False`"
        )


def _equal(copy: StoredTensor, base: Weight) -> bool:
    if copy.shape != base.shape:
        return False
    ours, theirs = copy.source(), base.source()
    step = max(1, _CHUNK // copy.shape[-1])
    n = n_rows(copy.shape)
    return all(
        np.array_equal(
            read_weights(ours, start, min(start + step, n)),
            read_weights(theirs, start, min(start + step, n)),
        )
        for start in range(0, n, step)
    )
