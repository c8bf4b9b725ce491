"""DeepSeek-MoE, the first generation: a Llama's attention, experts with shared ones beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, on, renamed
from dynquant.arch.config import Count, Natural, Truth, read_config
from dynquant.arch.decoder import ATTENTION, EMBEDDING, MLP, OUTPUT, OUTPUT_NORM
from dynquant.arch.experts import Routing, routing_keys
from dynquant.arch.families.deepseek import EXPERTS
from dynquant.arch.families.llama import llama
from dynquant.errors import ArchitectureError

NAME = "deepseek"


@dataclass(frozen=True)
class _Experts:
    n_routed_experts: Count
    n_shared_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    first_k_dense_replace: Natural = 0
    moe_layer_freq: int = 1
    norm_topk_prob: Truth = False
    scoring_func: str = "softmax"
    attention_bias: Truth = False
    mlp_bias: Truth = False


_TAKEN = {
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "attention_bias": False,
    "mlp_bias": False,
}
"""What llama.cpp's graph takes for granted."""


def deepseek(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-MoE: Q and K permuted as a Llama's, the first layers dense."""
    experts = read_config(_Experts, config, where)
    dense = llama(config, where)
    ArchitectureError.raise_any(_problems(experts, dense, where))
    layers = range(dense.n_layers)
    n_dense = min(experts.first_k_dense_replace, dense.n_layers)
    routing = Routing(
        n_experts=experts.n_routed_experts,
        n_used=experts.num_experts_per_tok,
        expert_ffn=experts.moe_intermediate_size,
        n_shared=experts.n_shared_experts,
        weights_scale=1.0,
        n_leading_dense=n_dense,
    )
    return replace(
        dense,
        name=NAME,
        keys=renamed(dense.keys, NAME) | routing_keys(NAME, routing),
        rows=(
            *(*EMBEDDING, *ATTENTION),
            *on(layers[:n_dense], MLP),
            *on(layers[n_dense:], EXPERTS),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={
            **dense.sizes,
            "experts": experts.n_routed_experts,
            "expert_ffn": experts.moe_intermediate_size,
            "shared_ffn": experts.moe_intermediate_size * experts.n_shared_experts,
        },
        n_experts=experts.n_routed_experts,
    )


def _problems(experts: _Experts, dense: Architecture, where: str) -> Iterator[str]:
    for key, fixed in _TAKEN.items():
        if (found := getattr(experts, key)) != fixed:
            yield f"{where}: {key} is {found}; llama.cpp computes this family with {fixed}"
    if dense.sizes["q"] != dense.sizes["hidden"]:
        yield (
            f"{where}: heads of {dense.sizes['head']} weights, {dense.sizes['q']} in all, are not"
            f" hidden_size {dense.sizes['hidden']}, which llama.cpp's deepseek takes them to be"
        )


FAMILIES = {"DeepseekForCausalLM": deepseek}
