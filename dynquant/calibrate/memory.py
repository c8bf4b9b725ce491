"""How much memory a run needs, from shapes alone."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from dynquant.arch.base import Model, ModelTensor, TensorName
from dynquant.importance.moments import N_SIGNS, Input
from dynquant.systems import system

_PROGRAM = 700 << 20
"""Bytes of torch and transformers themselves."""

_KEPT, _KEPT_IN_MIXTURE = 4, 6
"""Hidden states that a waiting group holds: the embeddings, what flows past the layers, and what a
layer got and returned; before experts also their inputs and the sum of their outputs."""

_BESIDE = 768
"""Numbers that a waiting group holds for each token besides: angles of positions, ids, masks."""

_WORKING = 8
"""Tensors as wide as a layer's widest matrix that a running group holds at once."""


_SCORES = 5
"""Copies of the scores of all pairs of tokens that attention holds at once, with its masks."""


def give_back_freed() -> None:
    """Let glibc return freed tensors to the system at once.

    By default each thread has a heap, which keeps what was freed: gigabytes with many groups. One
    heap for all threads saves up to a quarter of the time of small models, and needs half as much
    memory again, because hidden states lie scattered between what was freed.
    """
    if sys.platform == "win32":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 256 << 10)


_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h."""


def available_bytes() -> int:
    """Return the memory that a program can get: where Linux says it, what is free, else all RAM."""
    found = system().memory_bytes()
    if (said := _words(_FREE)) and "MemAvailable:" in said:
        found = int(said[said.index("MemAvailable:") + 1]) << 10
    limit, used = (_words(file) for file in _CONTAINER)
    if limit and used and limit[0] != "max":
        found = min(found, int(limit[0]) - int(used[0]))
    return found


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


_FREE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
"""Where Linux says what is free, and what a container may use and uses."""


def needed_bytes(
    model: Model,
    *,
    tokens: int,
    distinct: int,
    group: int,
    threads: int,
    moments: Sequence[Input] = (),
    context: int = 0,
) -> int:
    """Return the bytes that a run needs, at most.

    tokens:   of all windows
    distinct: different ones among them
    group:    tokens that run together
    threads:  groups, or experts, that run at once
    moments:  inputs whose second moments are collected
    context:  tokens of a window, if attention keeps the scores of all pairs of them; else 0
    """
    layers: dict[int, list[ModelTensor]] = {}
    for tensor in model.tensors:
        if tensor.parts.layer is not None:
            layers.setdefault(tensor.parts.layer, []).append(tensor)
    mixtures = {n: [t for t in ts if "_exps." in t.name] for n, ts in layers.items()}
    dense = max(_floats([t for t in ts if "_exps." not in t.name]) for ts in layers.values())
    expert = max(_floats(ts) // max(1, _n_experts(ts)) for ts in mixtures.values())
    hidden = next(t.n_per_row for t in model.tensors if t.name == "token_embd.weight")
    kept = _KEPT_IN_MIXTURE if any(mixtures.values()) else _KEPT
    running = threads * min(group, tokens) * _WORKING * _widest(layers)
    running += threads * _SCORES * _n_heads(model) * context * max(context, min(group, tokens))
    waiting = tokens * (hidden * kept + _BESIDE)
    floats = dense + threads * expert + distinct * hidden + waiting + running
    return _PROGRAM + 4 * (floats + _of_moments(moments, threads))


def _n_heads(model: Model) -> int:
    """Return the most heads that a layer's queries have."""
    key = model.keys.get(f"{model.architecture}.attention.head_count")
    found = key.value if key is not None else 0
    return max(int(n) for n in (found if isinstance(found, tuple) else (found,)))


def _of_moments(inputs: Sequence[Input], threads: int) -> int:
    """Return the numbers of a layer's products, those of the parts that are added to them, and what
    is written of one.
    """
    layers: dict[int | None, int] = {}
    for each in inputs:
        layer = TensorName.parse(each.tensors[0]).layer
        layers[layer] = layers.get(layer, 0) + each.n * (each.n + N_SIGNS)
    widest = max((each.n for each in inputs), default=0)
    return max(layers.values(), default=0) + (threads + 1) * widest * (widest + N_SIGNS)


def _floats(tensors: list[ModelTensor]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors)


def _n_experts(tensors: list[ModelTensor]) -> int:
    return max((tensor.shape[0] for tensor in tensors), default=1)


def _widest(layers: Mapping[int, list[ModelTensor]]) -> int:
    return max(max(t.shape[-2:]) for ts in layers.values() for t in ts)
