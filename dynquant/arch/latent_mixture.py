"""Settings of models with latent attention and experts, as DeepSeek-V3 has them.

Used by the families that mix latent attention with delta attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynquant.arch.config import Count, ExpertsCount, LayersCount, Natural, Positive, Truth
from dynquant.arch.experts import SIGMOID, Routing
from dynquant.arch.latent_attention import Latent
from dynquant.errors import ArchitectureError


@dataclass(frozen=True)
class Mixture:
    """The settings of config.json, with the names of transformers; families have the defaults."""

    num_hidden_layers: LayersCount
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Natural
    v_head_dim: Count
    num_experts: ExpertsCount
    num_experts_per_tok: Count
    n_shared_experts: Count
    moe_intermediate_size: Count
    routed_scaling_factor: Positive
    norm_topk_prob: Truth
    first_k_dense_replace: Natural
    q_lora_rank: Count | None = None
    n_group: Count = 1
    topk_group: Count = 1
    mlp_layer_types: tuple[Literal["dense", "sparse"], ...] | None = None

    def latent(self, n_head: int) -> Latent:
        """Return the dimensions of latent attention."""
        return Latent(
            n_head,
            self.kv_lora_rank,
            self.q_lora_rank,
            self.qk_nope_head_dim,
            self.qk_rope_head_dim,
            self.v_head_dim,
        )

    def n_dense(self, where: str) -> int:
        """Return the number of layers without experts, which must be the first."""
        kinds = self.mlp_layer_types
        if kinds is None:
            return min(self.first_k_dense_replace, self.num_hidden_layers)
        n = next((i for i, kind in enumerate(kinds) if kind == "sparse"), len(kinds))
        if len(kinds) != self.num_hidden_layers or "dense" in kinds[n:]:
            raise ArchitectureError(
                f"{where}: mlp_layer_types is not dense and then sparse for each of"
                f" {self.num_hidden_layers} layers, as llama.cpp's graph needs"
            )
        return n

    def routing(self, where: str) -> Routing:
        """Return how tokens are routed; groups of experts only if they limit the choice."""
        limits = self.topk_group < self.n_group
        return Routing(
            n_experts=self.num_experts,
            n_used=self.num_experts_per_tok,
            expert_ffn=self.moe_intermediate_size,
            n_shared=self.n_shared_experts,
            weights_scale=self.routed_scaling_factor,
            weights_norm=self.norm_topk_prob,
            gating=SIGMOID,
            n_groups=self.n_group if limits else None,
            n_groups_used=self.topk_group if limits else None,
            n_leading_dense=self.n_dense(where),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions of the experts' rows."""
        return {
            "experts": self.num_experts,
            "expert_ffn": self.moe_intermediate_size,
            "shared_ffn": self.moe_intermediate_size * self.n_shared_experts,
        }
