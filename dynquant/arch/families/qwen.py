"""Qwen2 and Qwen3, dense and with experts; their rotary halves stay as Hugging Face keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, renamed
from dynquant.arch.config import Count, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    QKV_BIASES,
    TIED,
    WEIGHTS,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.experts import Routing, expert_rows, router_row, routing_keys, with_expert_count
from dynquant.arch.rope import read_rope
from dynquant.errors import ArchitectureError

# llama.cpp's Qwen graphs take no rope_freqs tensor, so that they cannot compute "llama3".
SCALINGS = ("linear", "dynamic", "yarn")


def qwen2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen2: biases on Q, K and V always."""
    c = read_decoder(config, where)
    rope = read_rope(config, where, SCALINGS)
    if c.num_attention_heads * c.n_per_head != c.hidden_size:
        raise ArchitectureError(
            f"{where}: {c.num_attention_heads} heads of {c.n_per_head} are not hidden_size"
            f" {c.hidden_size}, which llama.cpp's qwen2 takes them to be"
        )
    return Architecture(
        name="qwen2",
        keys=decoder_keys("qwen2", c, rope, c.head_dim),
        rows=WEIGHTS + QKV_BIASES,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
    )


def qwen3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen3: norms on the heads of Q and K, no biases."""
    # transformers' default for Qwen3, unlike Llama's: not hidden_size / num_attention_heads.
    c = read_decoder(config, where, head_dim=128)
    rope = read_rope(config, where, SCALINGS)
    if c.attention_bias:
        raise ArchitectureError(
            f"{where}: attention_bias is true; llama.cpp's qwen3 has no bias on o_proj"
        )
    return Architecture(
        name="qwen3",
        keys=decoder_keys("qwen3", c, rope, c.n_per_head),
        rows=WEIGHTS + QK_NORMS,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
    )


@dataclass(frozen=True)
class _Experts:
    num_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[int, ...] = ()
    norm_topk_prob: Truth = False


def qwen3moe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen3-MoE: a Qwen3 with experts in every layer."""
    dense = qwen3(config, where)
    experts = read_config(_Experts, with_expert_count(config), where)
    ArchitectureError.raise_any(
        f"{where}: {key} is {getattr(experts, key)}; llama.cpp computes this family with {fixed}"
        for key, fixed in _SPARSE.items()
        if getattr(experts, key) != fixed
    )
    block = "model.layers.{}.mlp."
    routing = Routing(
        experts.num_experts, experts.num_experts_per_tok, experts.moe_intermediate_size
    )
    return replace(
        dense,
        name="qwen3moe",
        keys=renamed(dense.keys, "qwen3moe") | routing_keys("qwen3moe", routing),
        rows=(
            *EMBEDDING,
            *ATTENTION,
            *QK_NORMS,
            router_row(block + "gate.weight"),
            *expert_rows(block, gate="gate_proj", up="up_proj", down="down_proj"),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **dense.sizes,
            "experts": experts.num_experts,
            "expert_ffn": experts.moe_intermediate_size,
        },
        n_experts=experts.num_experts,
    )


_SPARSE = {"decoder_sparse_step": 1, "mlp_only_layers": (), "norm_topk_prob": True}
"""What llama.cpp's graph takes for granted."""

FAMILIES = {
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "Qwen3MoeForCausalLM": qwen3moe,
}
