"""LongRoPE: frequency factors of the rotary pairs, a set for short contexts and one for long."""

from __future__ import annotations

import math

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.arch.positions.rope import Rope
from dynquant.errors import ArchitectureError
from dynquant.tensors import Computed


def longrope_tensors(rope: Rope, n_rotated: int, where: str) -> tuple[ModelTensor, ...]:
    """Return the divisors of the frequencies, float32 [n_rotated / 2] each; empty if not LongRoPE.

    llama.cpp uses the long set if its context is longer than the original one.
    Raises ArchitectureError if a set has another length.
    """
    if rope.rope_type != "longrope":
        return ()
    sets = {"long": rope.long_factor or (), "short": rope.short_factor or ()}
    ArchitectureError.raise_any(
        f"{where}: {name}_factor has {len(factors)} numbers, but {n_rotated // 2} pairs are rotated"
        for name, factors in sets.items()
        if 2 * len(factors) != n_rotated
    )
    return tuple(
        ModelTensor(f"rope_factors_{name}.weight", Computed(np.array(factors, np.float32)))
        for name, factors in sets.items()
    )


def longrope_attention(rope: Rope, n_context: int) -> float:
    """Return the factor of sines and cosines (`_compute_longrope_parameters`).

    n_context: max_position_embeddings
    """
    if rope.attention_factor is not None:
        return rope.attention_factor
    original = rope.original_max_position_embeddings
    factor = rope.factor or n_context / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
