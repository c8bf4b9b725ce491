"""What the encoders minimise for a tensor of a file, and how much they search."""

from __future__ import annotations

from dynquant.arch.base import TensorName
from dynquant.quants.search import Effort, Search

LOOKED_UP = frozenset({"per_layer_token_embd", "position_embd", "token_embd", "token_types"})
"""Roles of tables whose rows are looked up. Losses of length do not add up over them: measured on
the tied embedding of tiny-books, "half" and "least-squares" give the same KL divergence."""


def search_for(name: str, effort: Effort) -> Search:
    """Return the choices of the encoder for a tensor; tables that are looked up keep least squares.

    name: the tensor's in the file
    """
    is_table = TensorName.parse(name).role in LOOKED_UP
    return Search(effort, gain="least-squares" if is_table else None)
