"""LFM2 and LFM2.5 with experts in all layers but the first ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, on
from dynquant.arch.config import Count, ExpertsCount, LayersCount, Natural, read_config
from dynquant.arch.families.lfm2 import BLOCK, HARMLESS, MLP, ONLY, READ, hybrid, layers_of
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    score_bias_row,
    with_expert_count,
)
from dynquant.arch.settings import Declared, Settings, constant, reads
from dynquant.arch.states.short_convolution import LAYER_TYPES

_EXPERTS = (
    router_row(BLOCK + "gate.weight"),
    score_bias_row(BLOCK + "expert_bias"),
    *expert_rows(BLOCK, gate="w1", up="w3", down="w2"),
)


@dataclass(frozen=True)
class _Experts:
    """config.json's settings of experts, with transformers' defaults."""

    num_hidden_layers: LayersCount
    intermediate_size: Count = 7168
    moe_intermediate_size: Count = 1792
    num_dense_layers: Natural = 2
    num_experts: ExpertsCount = 32
    num_experts_per_tok: Count = 4


def lfm2moe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an LFM2 with experts in all layers but the first ones."""
    experts = read_config(_Experts, with_expert_count(config), where)
    dense = hybrid("lfm2moe", config, where, experts.intermediate_size)
    n_dense = min(experts.num_dense_layers, experts.num_hidden_layers)
    routing = Routing(
        experts.num_experts,
        experts.num_experts_per_tok,
        expert_ffn=experts.moe_intermediate_size,
        gating=SIGMOID,
        n_leading_dense=n_dense,
    )
    return replace(
        dense,
        keys=dense.keys | routing_keys("lfm2moe", routing),
        rows=(
            *(row for row in dense.rows if row not in MLP),
            *on(range(n_dense), MLP),
            *on(range(n_dense, experts.num_hidden_layers), _EXPERTS),
        ),
        sizes={
            **dense.sizes,
            "experts": experts.num_experts,
            "expert_ffn": experts.moe_intermediate_size,
        },
        n_experts=experts.num_experts,
    )


FAMILIES = {
    "Lfm2MoeForCausalLM": Declared(
        lfm2moe,
        Settings(
            read=(READ - {"full_attn_idxs"}) | reads(_Experts, more="num_local_experts"),
            harmless=HARMLESS,
            only=ONLY
            | constant(True, "use_expert_bias norm_topk_prob")
            | constant(1.0, "routed_scaling_factor"),
            layer_types=LAYER_TYPES,
        ),
    ),
}
GRAPHS = {
    "lfm2moe": GGUFGraph("Lfm2MoeForCausalLM", layers=layers_of),
}
