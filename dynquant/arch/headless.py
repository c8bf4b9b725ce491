"""Base classes: language models without their output matrix, as for embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from dynquant.arch.base import Architecture, ModelTensor, Row
from dynquant.tensors import Computed

_WEIGHT, _BIAS = "output.weight", "output.bias"


def with_copied_head(architecture: Architecture) -> Architecture:
    """Return a model with the embedding as its output matrix, and zeros as the bias of that.

    For graphs of llama.cpp that need both, although embeddings are computed without them.
    """
    embedding = next(row for row in architecture.rows if row.name == "token_embd.weight")
    zeros = np.zeros(architecture.sizes["vocab"], np.float32)
    return replace(
        architecture,
        rows=tuple(_rows(architecture.rows, embedding)),
        extra=(
            *architecture.extra,
            *(ModelTensor(r.name, Computed(zeros)) for r in architecture.rows if r.name == _BIAS),
        ),
    )


def _rows(rows: tuple[Row, ...], embedding: Row) -> Iterator[Row]:
    for row in rows:
        if row.name != _BIAS:
            is_head = row.name == _WEIGHT
            yield replace(embedding, name=_WEIGHT, via=row.via) if is_head else row
