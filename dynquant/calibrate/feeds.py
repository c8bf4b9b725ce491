"""Which inputs each tensor of a GGUF is multiplied by, as places in transformers' model.

A tensor's stored names say which parameters it is made of, and these say the module. Some tensors
have other rules: the experts of a mixture whose modules hold them in one parameter; the two halves
of MLA's `kv_b`, which llama.cpp multiplies by other inputs than transformers does (attention.py);
parameters that are no linear layer's (products.py); and the output matrix, which the decoder that
is run does not have.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from dynquant.arch.base import ModelTensor
from dynquant.calibrate.sources import Source

LINEAR, GATE_UP, DOWN, KEYS, VALUES = "linear", "gate_up", "down", "k_b", "v_b"
PARAMETER = "parameter"
"""Inputs of a linear layer; of the first and of the second matrices of experts in one parameter, an
entry for each expert; of MLA's two halves, an entry for each head; of any other parameter."""

OUTPUT = "output"
"""The last hidden states, which the output matrix is multiplied by."""

_LATENT = {"attn_k_b": KEYS, "attn_v_b": VALUES}


@dataclass(frozen=True)
class Feed:
    """A place in the model where inputs are seen.

    module: the name of a module; of a parameter if kind is PARAMETER
    kind:   which of its inputs
    """

    module: str
    kind: str

    @property
    def parameter(self) -> str:
        """Return the name of the matrix; nothing if it is a part of one."""
        if self.kind == PARAMETER:
            return self.module
        return f"{self.module}.weight" if self.kind == LINEAR else ""


def feeds(source: Source, mixtures: Collection[str]) -> dict[str, tuple[Feed, ...]]:
    """Return the places for each tensor that has inputs: one, or one for each expert.

    mixtures: names of the modules that hold experts in one parameter
    """
    found = {tensor.name: _feeds_of(source, tensor, mixtures) for tensor in source.model.tensors}
    found[_output_matrix(found)] = (Feed(source.skeleton.name, OUTPUT),)
    return {name: places for name, places in found.items() if places}


def _output_matrix(names: Collection[str]) -> str:
    """Return the tensor that gives the logits; runtimes take the embedding where none is stored."""
    return "output.weight" if "output.weight" in names else "token_embd.weight"


def _feeds_of(source: Source, tensor: ModelTensor, mixtures: Collection[str]) -> tuple[Feed, ...]:
    skeleton = source.skeleton
    places = [skeleton.places.get(name, "") for name in source.parts.get(tensor.name, ())]
    if not places or not all(places) or len(tensor.shape) < 2:
        return ()
    modules = list(dict.fromkeys(place.rpartition(".")[0] for place in places))
    if modules[0] in mixtures:
        if not places[0].endswith("proj"):  # the bias of all experts
            return ()
        return (Feed(modules[0], DOWN if "down" in tensor.parts.role else GATE_UP),)
    if not all(is_linear(skeleton.model.get_submodule(name)) for name in modules):
        return (Feed(places[0], PARAMETER),) if len(set(places)) == 1 else ()
    if kind := _LATENT.get(tensor.parts.role):
        return (Feed(modules[0].rpartition(".")[0], kind),)
    if len(tensor.shape) == 2:  # parts that are joined have the same inputs
        modules = modules[:1]
    return tuple(Feed(name, LINEAR) for name in modules)


def is_linear(module: Any) -> bool:
    """Return whether a module multiplies its input by one matrix."""
    return isinstance(module, torch.nn.Linear | Conv1D)
