"""Small files of second moments, and the imatrix beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from imatrices import write_counted

from dynquant.arch.base import ModelTensor
from dynquant.importance.moments import Input, MomentsWriter

TOKENS = "5" * 64
"""The hash of the tokens that they were computed on."""


def input_of(*tensors: ModelTensor, n_moments: int = 1) -> Input:
    """Return the input that some tensors share."""
    first = tensors[0]
    n_matrices = first.shape[0] if len(first.shape) == 3 else 1
    names = tuple(t.name for t in tensors)
    return Input(first.name.removesuffix(".weight"), names, first.n_per_row, n_matrices, n_moments)


def write_moments(path: Path, *inputs: Input, seed: int = 0, tokens: str = TOKENS) -> Path:
    """Write random moments of some inputs."""
    rng = np.random.default_rng(seed)
    writer = MomentsWriter(path, inputs, {"model": "tiny", "tokens_sha256": tokens})
    writer.begin()
    for each in inputs:
        for name, (_, shape) in each.arrays.items():
            writer.write(name, rng.uniform(0.1, 1, shape))
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
