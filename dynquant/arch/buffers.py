"""Constants that old programs stored among the weights; models compute them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import prod

from dynquant.checkpoint.packed import Weight

_MASK = "llama.cpp computes the causal mask"
_ATTENTION = r"(.*\.)?(self_attn|attn|attention|attention\.self)"

_Shape = tuple[int, ...]


def _is_mask(shape: _Shape) -> bool:
    """Whether it is [1, 1, context, context]."""
    return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


def _is_table(shape: _Shape) -> bool:
    """Whether it is [context, rotated weights], with any number of dimensions of 1 before."""
    return len(shape) > 1 and prod(shape) == shape[-2] * shape[-1]


def _is_list(shape: _Shape) -> bool:
    """Whether it is [1, context] or [context]."""
    return len(shape) > 0 and prod(shape) == shape[-1]


def _is_number(shape: _Shape) -> bool:
    return prod(shape) == 1


_BUFFERS: tuple[tuple[re.Pattern[str], Callable[[_Shape], bool], str], ...] = (
    (re.compile(rf"{_ATTENTION}\.bias"), _is_mask, _MASK),
    (re.compile(rf"{_ATTENTION}\.masked_bias"), _is_number, _MASK),
    (
        re.compile(r"(.*\.)?position_ids"),
        _is_list,
        "the positions 0, 1, 2 …, which llama.cpp generates",
    ),
    (
        re.compile(r"(.*\.)?rotary_emb\.(cos|sin)_cached"),
        _is_table,
        "llama.cpp computes the rotary angles from the rope keys",
    ),
    (
        re.compile(r"(.*\.)?rotary_emb\.original_inv_freq"),
        _is_list,
        "llama.cpp computes the rotary frequencies from the rope keys",
    ),
)
"""Names, shapes and reasons. No class of a supported family reads them; a tensor of another shape
is something else."""


def constants(stored: Mapping[str, Weight], known: Iterable[str]) -> dict[str, str]:
    """Return the stored tensors that are constants, with the reasons to leave them out.

    known: names that have a use or a reason already
    """
    known = set(known)
    return {
        name: reason
        for pattern, has_shape, reason in _BUFFERS
        for name, weight in stored.items()
        if name not in known and pattern.fullmatch(name) and has_shape(weight.shape)
    }
