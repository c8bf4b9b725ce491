"""Settings of models with latent attention and experts, as DeepSeek-V3 has them.

Used by the families that have latent attention in some layers and delta attention in the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dynquant.arch.attention.latent import Latent
from dynquant.arch.config import (
    Count,
    ExpertsCount,
    Natural,
    Positive,
    Truth,
)
from dynquant.arch.graph_limits import group_problems
from dynquant.arch.mixtures.experts import SIGMOID, Routing
from dynquant.arch.settings import NO_WINDOW, harmless


@dataclass(frozen=True)
class Mixture:
    """The settings of config.json, with the names of transformers; families have the defaults."""

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
    q_lora_rank: Count | None = None
    n_group: Natural = 1
    topk_group: Natural = 1

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

    def routing(self, n_dense: int) -> Routing:
        """Return how tokens are routed.

        n_dense: leading layers without experts
        """
        return Routing(
            n_experts=self.num_experts,
            n_used=self.num_experts_per_tok,
            expert_ffn=self.moe_intermediate_size,
            n_shared=self.n_shared_experts,
            weights_scale=self.routed_scaling_factor,
            weights_norm=self.norm_topk_prob,
            gating=SIGMOID,
            n_leading_dense=n_dense,
        ).in_groups(self.n_group, self.topk_group)

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for groups from which llama.cpp cannot choose experts."""
        return group_problems(self.n_group or 1, self.topk_group or 1, self.num_experts, where)

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions of the experts' rows."""
        return {
            "experts": self.num_experts,
            "expert_ffn": self.moe_intermediate_size,
            "shared_ffn": self.moe_intermediate_size * self.n_shared_experts,
        }


SPELLINGS = {
    "model_max_length": "max_position_embeddings",
    "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group",
    "num_experts_per_token": "num_experts_per_tok",
    "num_local_experts": "num_experts",
    "num_shared_experts": "n_shared_experts",
}
"""Names in published checkpoints of settings that transformers names otherwise."""

NO_POSITIONS = (
    NO_WINDOW
    | harmless("latent attention has as many heads of K as of Q", "num_key_value_heads")
    | harmless("the model has no rotary embeddings", "head_dim rope_theta rope_scaling")
    | harmless("the sum of qk_nope_head_dim and qk_rope_head_dim", "qk_head_dim")
)
"""Settings without effect on latent attention that is not rotated."""
