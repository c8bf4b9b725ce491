"""GLM-4 and GLM-4-MoE (4.5, 4.6): part of each head is rotated; adjacent pairs in dense models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Prediction, Row, on
from dynquant.arch.config import (
    AheadCount,
    Count,
    ExpertsCount,
    Natural,
    Positive,
    Truth,
    read_config,
)
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    QKV_BIASES,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.experts import (
    SIGMOID,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    shared_rows,
    with_expert_count,
)
from dynquant.arch.rope import Rope, read_rope
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_ATTENTION = tuple(row for row in ATTENTION if "post_attention" not in row.stored)
_FUSED_MLP = (
    # Gate rows before up rows; llama.cpp's graph splits the product.
    Row(_LAYER + "mlp.gate_up_proj.weight", _OUT + "ffn_up.weight", "gate_up hidden"),
    Row(_LAYER + "mlp.down_proj.weight", _OUT + "ffn_down.weight", "hidden ffn"),
)
_POST_NORMS = (
    Row(_LAYER + "post_self_attn_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
    Row(_LAYER + "post_mlp_layernorm.weight", _OUT + "post_ffw_norm.weight", "hidden"),
)
_SCALINGS = ("linear", "dynamic", "yarn")


def _read(config: Mapping[str, Any], where: str, head_dim: int | None) -> tuple[Config, Rope]:
    c = read_decoder(config, where, head_dim)
    rope = read_rope(config, where, _SCALINGS, partial=0.5)
    if _n_rotated(c, rope) % 2:
        raise ArchitectureError(
            f"{where}: partial_rotary_factor {rope.partial_rotary_factor} rotates"
            f" {_n_rotated(c, rope)} weights of a head; rotary embeddings need an even number"
        )
    return c, rope


def _n_rotated(c: Config, rope: Rope) -> int:
    return int(c.n_per_head * rope.partial_rotary_factor)


def _keys(arch: str, c: Config, rope: Rope) -> Keys:
    keys = decoder_keys(arch, c, rope, c.n_per_head)
    return keys | {f"{arch}.rope.dimension_count": u32(_n_rotated(c, rope))}


def _dense(
    arch: str, config: Mapping[str, Any], where: str, norms: tuple[Row, ...]
) -> Architecture:
    # transformers' defaults: a bias, and heads of 128 weights.
    c, rope = _read({"attention_bias": True, **config}, where, 128)
    return Architecture(
        name=arch,
        keys=_keys(arch, c, rope),
        rows=(
            *EMBEDDING,
            *ATTENTION,
            *(QKV_BIASES if c.attention_bias else ()),
            *norms,
            *_FUSED_MLP,
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={**decoder_sizes(c), "gate_up": 2 * c.intermediate_size},
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
    )


def glm(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-4 of 2024, which has ChatGLM's graph in llama.cpp."""
    found = _dense("chatglm", config, where, norms=())
    if found.sizes["q"] != found.sizes["hidden"]:
        raise ArchitectureError(
            f"{where}: num_attention_heads times head_dim is {found.sizes['q']}, not hidden_size"
            f" {found.sizes['hidden']}, as llama.cpp's chatglm assumes"
        )
    return found


def glm4(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-4 of 2025 (0414): norms also after attention and MLP."""
    return _dense("glm4", config, where, norms=_POST_NORMS)


@dataclass(frozen=True)
class _Experts:
    num_experts: ExpertsCount
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    n_shared_experts: Count = 1
    first_k_dense_replace: Natural = 1
    routed_scaling_factor: Positive = 1.0
    norm_topk_prob: Truth = True
    n_group: Count = 1
    topk_group: Count = 1
    use_qk_norm: Truth = False
    num_nextn_predict_layers: AheadCount = 0


def glm4moe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-4-MoE: dense layers first, then experts chosen by sigmoids and a bias."""
    c, rope = _read(config, where, None)
    e = read_config(_Experts, with_expert_count(config), where)
    n, n_dense = c.num_hidden_layers, e.first_k_dense_replace
    ahead = range(n, n + e.num_nextn_predict_layers)
    every = range(n + e.num_nextn_predict_layers)
    routing = Routing(
        e.num_experts,
        e.num_experts_per_tok,
        expert_ffn=e.moe_intermediate_size,
        n_shared=e.n_shared_experts,
        weights_scale=e.routed_scaling_factor,
        weights_norm=e.norm_topk_prob,
        gating=SIGMOID,
        n_groups=e.n_group,
        n_groups_used=e.topk_group,
        n_leading_dense=n_dense,
    )
    attention = (
        *_ATTENTION,
        *(QKV_BIASES if c.attention_bias else ()),
        *(QK_NORMS if e.use_qk_norm else ()),
        Row(
            _LAYER + "post_attention_layernorm.weight",
            _OUT + "post_attention_norm.weight",
            "hidden",
        ),
    )
    block = _LAYER + "mlp."
    experts = (
        router_row(block + "gate.weight"),
        Row(block + "gate.e_score_correction_bias", _OUT + "exp_probs_b.bias", "experts"),
        *expert_rows(block, gate="gate_proj", up="up_proj", down="down_proj"),
        *shared_rows(block + "shared_experts."),
    )
    return Architecture(
        name="glm4moe",
        keys=_keys("glm4moe", c, rope) | routing_keys("glm4moe", routing),
        rows=(
            *EMBEDDING,
            *on(every, attention),
            *on(range(n_dense), MLP),
            *on(range(n_dense, every.stop), experts),
            *on(ahead, _NEXT),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            "experts": e.num_experts,
            "expert_ffn": e.moe_intermediate_size,
            "shared_ffn": e.moe_intermediate_size * e.n_shared_experts,
            "two_hidden": 2 * c.hidden_size,
        },
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        n_experts=e.num_experts,
        prediction=Prediction(
            ahead,
            {
                "glm4moe.block_count": u32(every.stop),
                "glm4moe.nextn_predict_layers": u32(len(ahead)),
            },
        )
        if ahead
        else None,
    )


_NEXT = (
    Row(_LAYER + "eh_proj.weight", _OUT + "nextn.eh_proj.weight", "hidden two_hidden"),
    Row(_LAYER + "embed_tokens.weight", _OUT + "nextn.embed_tokens.weight", "vocab hidden"),
    Row(_LAYER + "enorm.weight", _OUT + "nextn.enorm.weight", "hidden"),
    Row(_LAYER + "hnorm.weight", _OUT + "nextn.hnorm.weight", "hidden"),
    Row(_LAYER + "shared_head.head.weight", _OUT + "nextn.shared_head_head.weight", "vocab hidden"),
    Row(_LAYER + "shared_head.norm.weight", _OUT + "nextn.shared_head_norm.weight", "hidden"),
)

FAMILIES = {
    "GlmForCausalLM": glm,
    "Glm4ForCausalLM": glm4,
    "Glm4MoeForCausalLM": glm4moe,
}
