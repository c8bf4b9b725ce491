"""How much memory a run needs, from shapes alone."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from math import prod

from dynquant.arch.base import Model, ModelTensor

_PROGRAM = 700 << 20
"""Bytes of torch and transformers themselves."""

_KEPT, _KEPT_IN_MIXTURE = 4, 6
"""Hidden states that a waiting group holds: the embeddings, what flows past the layers, and what a
layer got and returned; before experts also their inputs and the sum of their outputs."""

_BESIDE = 768
"""Numbers that a waiting group holds for each token besides: angles of positions, ids, masks."""

_WORKING = 8
"""Tensors as wide as a layer's widest matrix that a running group holds at once."""


def share_freed() -> None:
    """Let all threads take memory from one heap of glibc.

    By default each thread has a heap, which keeps what was freed: gigabytes with many groups. The
    other extreme, to return each freed tensor to the system, costs a quarter of the CPU time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        mallopt(_TRIM_THRESHOLD, 512 << 20)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt in malloc.h."""


def needed_bytes(model: Model, *, tokens: int, distinct: int, group: int, threads: int) -> int:
    """Return the bytes that a run needs, at most.

    tokens:   of all windows
    distinct: different ones among them
    group:    tokens that run together
    threads:  groups, or experts, that run at once
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
    waiting = tokens * (hidden * kept + _BESIDE)
    floats = dense + threads * expert + distinct * hidden + waiting + running
    return _PROGRAM + 4 * floats


def _floats(tensors: list[ModelTensor]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors)


def _n_experts(tensors: list[ModelTensor]) -> int:
    return max((tensor.shape[0] for tensor in tensors), default=1)


def _widest(layers: Mapping[int, list[ModelTensor]]) -> int:
    return max(max(t.shape[-2:]) for ts in layers.values() for t in ts)
