"""Experts beside a layer's feed-forward matrices, with norms around both (Gemma 4).

The graph divides the router's input by its size and multiplies it by `router.scale`. Each expert's
output is multiplied by its `per_expert_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Row
from dynquant.arch.config import Count, ExpertsCount, read_config
from dynquant.arch.mixtures.experts import Routing, router_row

_IN, _OUT = "model.layers.{}.", "blk.{}."
SIDE_EXPERTS = (
    router_row(_IN + "router.proj.weight"),
    Row(_IN + "router.scale", _OUT + "ffn_gate_inp.scale", "hidden"),
    Row(_IN + "router.per_expert_scale", _OUT + "ffn_down_exps.scale", "experts"),
    Row(_IN + "experts.gate_up_proj", _OUT + "ffn_gate_up_exps.weight", "experts gate_up hidden"),
    Row(_IN + "experts.down_proj", _OUT + "ffn_down_exps.weight", "experts hidden expert_ffn"),
    Row(_IN + "pre_feedforward_layernorm_2.weight", _OUT + "pre_ffw_norm_2.weight", "hidden"),
    Row(_IN + "post_feedforward_layernorm_1.weight", _OUT + "post_ffw_norm_1.weight", "hidden"),
    Row(_IN + "post_feedforward_layernorm_2.weight", _OUT + "post_ffw_norm_2.weight", "hidden"),
)


@dataclass(frozen=True)
class SideExperts:
    """The settings of config.json."""

    num_experts: ExpertsCount
    top_k_experts: Count
    moe_intermediate_size: Count

    @property
    def routing(self) -> Routing:
        """How tokens are routed; the graph fixes the rest."""
        return Routing(self.num_experts, self.top_k_experts, self.moe_intermediate_size)

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            "experts": self.num_experts,
            "expert_ffn": self.moe_intermediate_size,
            "gate_up": 2 * self.moe_intermediate_size,
        }


def read_side_experts(config: Mapping[str, Any], where: str) -> SideExperts:
    """Return the settings; raise ArchitectureError if some are missing or not valid."""
    return read_config(SideExperts, config, where)
