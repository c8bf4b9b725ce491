"""Arcee's AFM: a Llama whose MLP has no gate, and squares its positive activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.base import Architecture, renamed
from dynquant.arch.decoder import read_decoder
from dynquant.arch.families.llama import llama
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings
from dynquant.errors import ArchitectureError

_NAME = "arcee"
_ACTIVATION = "relu2"


def arcee(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an Arcee; llama.cpp reads no biases of it."""
    c = read_decoder({"hidden_act": _ACTIVATION, **config}, where, activation=(_ACTIVATION,))
    ArchitectureError.raise_any(fixed(c, {"attention_bias": False, "mlp_bias": False}, where))
    found = llama({**config, "hidden_act": None}, where)
    return replace(
        found,
        name=_NAME,
        keys=renamed(found.keys, _NAME),
        rows=tuple(row for row in found.rows if ".mlp.gate_proj." not in row.stored),
    )


FAMILIES = {"ArceeForCausalLM": Declared(arcee, Settings(read=DECODER, harmless=NO_WINDOW))}
GRAPHS = {
    "arcee": GGUFGraph("ArceeForCausalLM"),
}
