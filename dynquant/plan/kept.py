"""Blocks that a file takes as they are stored, with the numbers that belong beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dynquant.arch.base import Model, ModelTensor
from dynquant.recipe.assignment import Assigned


def keep_blocks(model: Model, assigned: Assigned) -> Model:
    """Return a model whose tensors that keep their type are the stored blocks.

    Each is followed by its factor, `NAME.scale`. The model itself, if there is none.
    """
    tensors = tuple(_settled(model, assigned))
    return model if len(tensors) == len(model.tensors) else replace(model, tensors=tensors)


def _settled(model: Model, assigned: Assigned) -> Iterator[ModelTensor]:
    for tensor in model.tensors:
        chosen = assigned.assignments.get(tensor.name)
        kept = tensor.kept
        if kept is None or chosen is None or chosen.type != kept.blocks.stored:
            yield tensor
            continue
        yield ModelTensor(tensor.name, kept.blocks)
        yield ModelTensor(tensor.name.removesuffix("weight") + "scale", kept.factor)
