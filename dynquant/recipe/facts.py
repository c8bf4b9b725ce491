"""The facts of a model that a recipe's conditions check: depth, experts, heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dynquant.arch.base import Model, ModelTensor
from dynquant.keys import Keys
from dynquant.recipe.roles import members

_MAX_LAYERS = 10_000
"""Tensor names have layer numbers of at most four digits."""


@dataclass(frozen=True)
class Facts:
    """The facts of a model that rules depend on.

    n_layers:   without prediction layers; negative layer numbers count from their end
    prediction: numbers of the prediction layers
    n_experts:  routed experts of a layer, 0 if there are none
    gqa:        query heads for each key head, 1 without grouping, 0 if unknown
    importance: whether there is an imatrix
    layers_of:  for each role, the layers with a tensor of it, without prediction layers
    """

    architecture: str
    n_layers: int
    prediction: range = range(0)
    n_experts: int = 0
    gqa: int = 0
    tied_embeddings: bool = False
    importance: bool = False
    layers_of: Mapping[str, frozenset[int]] = field(default_factory=dict[str, frozenset[int]])

    def layers_with(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Return the layers with a tensor of one of the roles or groups, in order."""
        found = (self.layers_of.get(role, frozenset[int]()) for role in members(names))
        return tuple(sorted(frozenset[int]().union(*found)))


def facts_of(model: Model, *, importance: bool = False) -> Facts:
    """Return the facts of a model; importance: whether there is an imatrix."""
    found = facts_of_tensors(model.tensors, prediction=_prediction(model))
    return replace(
        found,
        architecture=model.architecture,
        n_experts=_first(model.keys, f"{model.architecture}.expert_count"),
        gqa=_gqa(model),
        importance=importance,
    )


def facts_of_tensors(tensors: Sequence[ModelTensor], prediction: range = range(0)) -> Facts:
    """Return the facts that follow from tensors: the layers, and whether embeddings are tied."""
    layers_of: dict[str, set[int]] = {}
    for tensor in tensors:
        layer = tensor.parts.layer
        if layer is not None and layer not in prediction:
            layers_of.setdefault(tensor.parts.role, set()).add(layer)
    names = {tensor.name for tensor in tensors}
    last = max((max(layers) for layers in layers_of.values()), default=-1)
    return Facts(
        architecture="",
        n_layers=prediction.start if prediction else last + 1,
        prediction=prediction,
        tied_embeddings="token_embd.weight" in names and "output.weight" not in names,
        layers_of={role: frozenset(layers) for role, layers in layers_of.items()},
    )


def _prediction(model: Model) -> range:
    """Return the prediction layers; a GGUF has their number in a key."""
    if model.prediction:
        return model.prediction.layers
    n = _first(model.keys, f"{model.architecture}.nextn_predict_layers")
    end = _first(model.keys, f"{model.architecture}.block_count")
    return ahead(n, end)


def ahead(n: int, end: int) -> range:
    """Return the last n of a GGUF's layers; an empty range if its keys cannot be right."""
    return range(end - n, end) if 0 < n < end <= _MAX_LAYERS else range(0)


def _gqa(model: Model) -> int:
    heads = _first(model.keys, f"{model.architecture}.attention.head_count")
    kv_heads = _first(model.keys, f"{model.architecture}.attention.head_count_kv")
    return heads // kv_heads if kv_heads else 0


def _first(keys: Keys, name: str) -> int:
    """Return a number, or the first of an array, one for each layer, that is not 0; 0 if none."""
    value = keys[name].value if name in keys else 0
    numbers = value if isinstance(value, tuple) else (value,)
    return next((n for n in numbers if isinstance(n, int) and n), 0)
