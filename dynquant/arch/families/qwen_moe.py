"""Qwen2-MoE and Qwen3-MoE: Qwens with experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.attention.windows import switched_window_left_out
from dynquant.arch.base import Architecture, Row, renamed
from dynquant.arch.config import Count, ExpertsCount, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    QKV_BIASES,
    read_decoder,
)
from dynquant.arch.families.qwen import WINDOWS, qwen2, qwen3
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    shared_rows,
    with_expert_count,
)
from dynquant.arch.settings import DECODER, Declared, Settings, harmless, reads
from dynquant.errors import ArchitectureError

_BLOCK = "model.layers.{}.mlp."
ROUTED = (
    router_row(_BLOCK + "gate.weight"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj"),
)
# The expert that all tokens use; a gate scales its output.
SHARED = (
    Row(_BLOCK + "shared_expert_gate.weight", "blk.{}.ffn_gate_inp_shexp.weight", "one hidden"),
    *shared_rows(_BLOCK + "shared_expert."),
)


@dataclass(frozen=True)
class Experts:
    """config.json's settings of a Qwen's experts."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    shared_expert_intermediate_size: Count | None = None
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[int, ...] = ()
    norm_topk_prob: Truth = False
    qkv_bias: Truth = True

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows of experts name."""
        return {
            "experts": self.num_experts,
            "expert_ffn": self.moe_intermediate_size,
            "shared_ffn": self.shared_expert_intermediate_size or 0,
            "one": 1,
        }

    @property
    def routing(self) -> Routing:
        """How tokens are routed to experts."""
        return Routing(
            self.num_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
            self.shared_expert_intermediate_size,
        )


_SPARSE = {"decoder_sparse_step": 1, "mlp_only_layers": ()}
"""Experts in every layer, as llama.cpp's graphs assume."""


def read_experts(config: Mapping[str, Any], where: str, **expected: object) -> Experts:
    """Return the experts; raise ArchitectureError if the graph assumes other settings.

    expected: further settings that the graph assumes
    """
    experts = read_config(Experts, with_expert_count(config), where)
    ArchitectureError.raise_any(fixed(experts, {**_SPARSE, **expected}, where))
    return experts


def qwen2moe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen2-MoE: a Qwen2 with experts and a gated shared expert."""
    shared = {"shared_expert_intermediate_size": 5632, **config}  # transformers' default
    experts = read_experts(shared, where, norm_topk_prob=False, qkv_bias=True)
    dense = qwen2(config, where)
    ArchitectureError.raise_any(output_apart(read_decoder(config, where), where))
    return replace(
        dense,
        name="qwen2moe",
        keys=renamed(dense.keys, "qwen2moe") | routing_keys("qwen2moe", experts.routing),
        rows=(
            *EMBEDDING,
            *ATTENTION,
            *QKV_BIASES,
            *ROUTED,
            *SHARED,
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={**dense.sizes, **experts.sizes},
        n_experts=experts.num_experts,
        deviations=switched_window_left_out(config, where, "some"),
    )


def qwen3moe(config: Mapping[str, Any], where: str, head_dim: int | None = 128) -> Architecture:
    """Describe a Qwen3-MoE: a Qwen3 with experts, with its default of head_dim."""
    experts = read_experts(config, where, norm_topk_prob=True)
    dense = qwen3(config, where, head_dim)
    return replace(
        dense,
        name="qwen3moe",
        keys=renamed(dense.keys, "qwen3moe") | routing_keys("qwen3moe", experts.routing),
        rows=(
            *EMBEDDING,
            *ATTENTION,
            *QK_NORMS,
            *ROUTED,
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={**dense.sizes, **experts.sizes},
        n_experts=experts.num_experts,
        deviations=switched_window_left_out(config, where, "all"),
    )


READ = DECODER | reads(Experts, more="num_local_experts n_routed_experts")
"""What every Qwen with experts reads."""

FAMILIES = {
    "Qwen2MoeForCausalLM": Declared(
        qwen2moe,
        Settings(
            read=READ | WINDOWS,
            harmless=harmless("a window in any layer is reported", "max_window_layers"),
        ),
    ),
    "Qwen3MoeForCausalLM": Declared(
        qwen3moe,
        Settings(
            read=READ | WINDOWS,
            harmless=harmless("all layers have the window", "max_window_layers layer_types"),
        ),
    ),
}
GRAPHS = {
    "qwen2moe": GGUFGraph("Qwen2MoeForCausalLM"),
    "qwen3moe": GGUFGraph("Qwen3MoeForCausalLM", settings={"norm_topk_prob": True}),
}
