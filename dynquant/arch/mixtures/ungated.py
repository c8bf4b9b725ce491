"""Experts of two matrices, without gates, which may work in a smaller space (Nemotron 3)."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.arch.base import Form, Row
from dynquant.arch.config import Count, ExpertsCount, Positive, Truth
from dynquant.arch.mixtures.experts import Routing, router_row, routing_keys, score_bias_row
from dynquant.keys import Keys, u32

_OUT = "blk.{}."


@dataclass(frozen=True)
class LatentExperts:
    """config.json's settings, with transformers' defaults."""

    n_routed_experts: ExpertsCount = 8
    num_experts_per_tok: Count = 2
    moe_intermediate_size: Count = 7688
    moe_shared_expert_intermediate_size: Count = 7688
    moe_latent_size: Count | None = None
    n_shared_experts: Count = 1
    routed_scaling_factor: Positive = 1.0
    n_group: Count = 1
    topk_group: Count = 1
    norm_topk_prob: Truth = True

    def rows(self, block: str) -> tuple[Row, ...]:
        """Return the rows of a layer.

        block:      the beginning of their names ("model.layers.{}.mixer.")
        Dimensions: `hidden`, and those of `sizes`

        Experts are stored one by one, or as a stack for each of their matrices.
        """
        shared = block + "shared_experts."
        latent = (
            Row(block + "fc1_latent_proj.weight", _OUT + "ffn_latent_down.weight", "latent hidden"),
            Row(block + "fc2_latent_proj.weight", _OUT + "ffn_latent_up.weight", "hidden latent"),
        )
        return (
            router_row(block + "gate.weight"),
            score_bias_row(
                block + "gate.e_score_correction_bias", block + "gate.e_score_correction.bias"
            ),
            _matrix(block, "up", "expert_ffn latent"),
            _matrix(block, "down", "latent expert_ffn"),
            Row(shared + "up_proj.weight", _OUT + "ffn_up_shexp.weight", "shared_ffn hidden"),
            Row(shared + "down_proj.weight", _OUT + "ffn_down_shexp.weight", "hidden shared_ffn"),
            *(latent if self.moe_latent_size else ()),
        )

    def sizes(self, n_hidden: int) -> dict[str, int]:
        """Return the dimensions that the rows name."""
        return {
            "experts": self.n_routed_experts,
            "expert_ffn": self.moe_intermediate_size,
            "latent": self.moe_latent_size or n_hidden,
            "shared_ffn": self.moe_shared_expert_intermediate_size,
        }

    def keys(self, arch: str) -> Keys:
        """Return the keys."""
        routing = Routing(
            self.n_routed_experts,
            self.num_experts_per_tok,
            expert_ffn=self.moe_intermediate_size,
            shared_ffn=self.moe_shared_expert_intermediate_size,
            n_shared=self.n_shared_experts,
            weights_scale=self.routed_scaling_factor,
            weights_norm=self.norm_topk_prob,
            n_groups=self.n_group,
            n_groups_used=self.topk_group,
        )
        latent = self.moe_latent_size
        return routing_keys(arch, routing) | (
            {f"{arch}.moe_latent_size": u32(latent)} if latent else {}
        )


def _matrix(block: str, name: str, shape: str) -> Row:
    stack = f"{block}experts.{name}_proj"
    return Row(
        f"{block}experts.{{expert}}.{name}_proj.weight",
        f"{_OUT}ffn_{name}_exps.weight",
        shape,
        forms=(Form(stack, f"experts {shape}", block, oriented=False),),
    )
