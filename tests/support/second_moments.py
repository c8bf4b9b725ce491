"""Small files of second moments, and the imatrix beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from imatrices import write_counted

from dynquant.arch.base import ModelTensor
from dynquant.importance.moments import N_SIGNS, Input, MomentsWriter, upper_triangle

N_TOKENS = 1100
TOKENS = "5" * 64
"""The hash of the tokens that they were computed on."""


def input_of(*tensors: ModelTensor, n_moments: int = 1) -> Input:
    """Return the input that some tensors share."""
    first = tensors[0]
    n_matrices = first.shape[0] if len(first.shape) == 3 else 1
    names = tuple(t.name for t in tensors)
    return Input(first.name.removesuffix(".weight"), names, first.n_per_row, n_matrices, n_moments)


def write_moments(
    path: Path,
    *inputs: Input,
    seed: int = 0,
    tokens: str = TOKENS,
    other_held_out: bool = False,
) -> Path:
    """Write the moments of random inputs whose channels are correlated.

    other_held_out: the held-out ones are correlated in another way
    """
    rng = np.random.default_rng(seed)
    writer = MomentsWriter(path, inputs, {"model": "tiny", "tokens_sha256": tokens})
    writer.begin()
    for each in inputs:
        x = rng.standard_normal((N_TOKENS, each.n)) @ rng.standard_normal((each.n, each.n))
        x /= np.sqrt(each.n)
        second = (x.T @ x / N_TOKENS).astype(np.float32)
        x = x[:, ::-1] if other_held_out else x
        held_out = rng.standard_normal((N_SIGNS, N_TOKENS)) @ x / np.sqrt(N_SIGNS * N_TOKENS)
        arrays = {
            "squares": np.tile(second.diagonal(), (each.n_matrices, 1)),
            "counts": np.full(each.n_matrices, N_TOKENS),
            "correlations": np.tile(upper_triangle(second), (each.n_moments, 1)),
            "held_out": np.tile(held_out, (each.n_moments, 1, 1)),
        }
        for name, values in arrays.items():
            writer.write(f"{each.name}.{name}", values)
    writer.finish()
    return path


def write_importance(path: Path, *tensors: ModelTensor, tokens: str = TOKENS) -> Path:
    """Write an imatrix of some tensors, as of the same run."""
    entries: Mapping[str, tuple[np.ndarray, list[float]]] = {
        t.name: (
            np.random.default_rng(i).uniform(0.1, 1, (n, t.n_per_row)).astype(np.float32),
            [1.0] * n,
        )
        for i, t in enumerate(tensors)
        for n in [t.shape[0] if len(t.shape) == 3 else 1]
    }
    return write_counted(path, entries, **{"dynquant_imatrix.tokens_sha256": tokens})
