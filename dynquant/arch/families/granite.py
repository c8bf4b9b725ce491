"""Granite, dense and with experts: a Llama with multipliers at four places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row, renamed
from dynquant.arch.config import Count, ExpertsCount, Natural, Positive, read_config
from dynquant.arch.families.llama import llama
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.mixtures.experts import (
    Routing,
    fused_rows,
    router_row,
    routing_keys,
    with_expert_count,
)
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    reads,
)
from dynquant.keys import f32
from dynquant.transforms import rows_of_each


@dataclass(frozen=True)
class _Multipliers:
    """With transformers' defaults, which differ from llama.cpp's."""

    embedding_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0


def granite(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Granite; llama.cpp divides the logits by logit_scale."""
    dense = llama(config, where)
    m = read_config(_Multipliers, config, where)
    return replace(
        dense,
        name="granite",
        keys=renamed(dense.keys, "granite")
        | {
            "granite.attention.scale": f32(m.attention_multiplier),
            "granite.embedding_scale": f32(m.embedding_multiplier),
            "granite.residual_scale": f32(m.residual_multiplier),
            "granite.logit_scale": f32(m.logits_scaling),
        },
    )


@dataclass(frozen=True)
class Experts:
    """The settings of experts, and of the one that all tokens use."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count
    intermediate_size: Count
    shared_intermediate_size: Natural = 0


_IN, _OUT = "model.layers.{}.", "blk.{}."
_BLOCK = _IN + "block_sparse_moe."
_EXPERTS = (
    router_row(_BLOCK + "router.layer.weight", _BLOCK + "router.weight"),
    *fused_rows(_BLOCK, "input_linear.weight", "output_linear.weight"),
)
SHARED_GATE_UP = _IN + "shared_mlp.input_linear.weight"
_SHARED = (
    Row(SHARED_GATE_UP, _OUT + "ffn_gate_shexp.weight", "shared_gate_up hidden"),
    Row(SHARED_GATE_UP, _OUT + "ffn_up_shexp.weight", "shared_gate_up hidden"),
    Row(_IN + "shared_mlp.output_linear.weight", _OUT + "ffn_down_shexp.weight", "hidden shared"),
)


def granitemoe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Granite-MoE: all experts of a layer in one tensor, gate rows before up rows."""
    dense = granite(config, where)
    experts = read_config(Experts, with_expert_count(config), where)
    n_gates, n_shared = experts.intermediate_size, experts.shared_intermediate_size
    routing = Routing(experts.num_experts, experts.num_experts_per_tok, shared_ffn=n_shared or None)
    return replace(
        dense,
        name="granitemoe",
        keys=renamed(dense.keys, "granitemoe") | routing_keys("granitemoe", routing),
        rows=(
            *(row for row in dense.rows if ".mlp." not in row.stored),
            *_EXPERTS,
            *(_SHARED if n_shared else ()),
        ),
        sizes={
            **dense.sizes,
            "experts": experts.num_experts,
            "expert_ffn": n_gates,
            "expert_ffn_twice": 2 * n_gates,
            "shared": n_shared,
            "shared_gate_up": 2 * n_shared,
        },
        via={
            **dense.via,
            "ffn_gate_shexp": partial(rows_of_each, start=0, stop=n_shared),
            "ffn_up_shexp": partial(rows_of_each, start=n_shared, stop=2 * n_shared),
        },
    )


READ = DECODER | reads(_Multipliers)
_ONLY = constant("rope", "position_embedding_type")
_WITH_EXPERTS = Declared(
    granitemoe,
    Settings(
        read=READ | reads(Experts, more="num_local_experts"),
        harmless=NO_WINDOW,
        only=_ONLY,
    ),
)
FAMILIES = {
    "GraniteForCausalLM": Declared(granite, Settings(read=READ, harmless=NO_WINDOW, only=_ONLY)),
    "GraniteMoeForCausalLM": _WITH_EXPERTS,
    "GraniteMoeSharedForCausalLM": _WITH_EXPERTS,
}


def _class_of(keys: FileKeys) -> str:
    """Return the class of a GGUF's model: old files with experts have the same architecture."""
    return "GraniteMoeForCausalLM" if keys.number("expert_count") else "GraniteForCausalLM"


GRAPHS = {
    "granite": GGUFGraph("GraniteForCausalLM", class_of=_class_of),
    "granitemoe": GGUFGraph("GraniteMoeForCausalLM"),
}
