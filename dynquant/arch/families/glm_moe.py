"""GLM-4-MoE (4.5, 4.6) and Solar Open: experts chosen by sigmoids and a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    decoder_sizes,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    SIGMOID_EXPERTS,
    Routing,
    routing_keys,
    with_expert_count,
)
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.positions.sections import SECTIONS, section_keys, split_sections
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, constant, harmless, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.keys import u32

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_BEFORE = tuple(row for row in ATTENTION if "post_attention" not in row.stored)
_AFTER = (
    Row(_LAYER + "post_attention_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
)
_PREDICTION = (
    Row(_LAYER + "eh_proj.weight", _OUT + "nextn.eh_proj.weight", "hidden two_hidden"),
    Row(_LAYER + "embed_tokens.weight", _OUT + "nextn.embed_tokens.weight", "vocab hidden"),
    Row(_LAYER + "enorm.weight", _OUT + "nextn.enorm.weight", "hidden"),
    Row(_LAYER + "hnorm.weight", _OUT + "nextn.hnorm.weight", "hidden"),
    Row(_LAYER + "shared_head.head.weight", _OUT + "nextn.shared_head_head.weight", "vocab hidden"),
    Row(_LAYER + "shared_head.norm.weight", _OUT + "nextn.shared_head_norm.weight", "hidden"),
)


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


def glm4moe(config: Mapping[str, Any], where: str, partial: float = 0.5) -> Architecture:
    """Describe a GLM-4-MoE: dense layers first, then experts chosen by sigmoids and a bias.

    partial: the default of partial_rotary_factor
    """
    c, rope = read_partial(config, where, None, partial)
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
        *_BEFORE,
        *(QKV_BIASES if c.attention_bias else ()),
        *(QK_NORMS if e.use_qk_norm else ()),
        *_AFTER,
    )
    return Architecture(
        name="glm4moe",
        keys=partial_keys("glm4moe", c, rope) | routing_keys("glm4moe", routing),
        rows=(
            *EMBEDDING,
            *on(every, attention),
            *on(range(n_dense), MLP),
            *on(range(n_dense, every.stop), SIGMOID_EXPERTS),
            *on(ahead, _PREDICTION),
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


def glm4vmoe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a GLM-4.5V or 4.6V: a GLM-4-MoE with rotary sections."""
    plain, sections = split_sections(config, where, (8, 12, 12))
    found = glm4moe({"attention_bias": True, **plain}, where)
    n_rotated = found.keys["glm4moe.rope.dimension_count"].value
    assert isinstance(n_rotated, int)
    return replace(found, keys=found.keys | section_keys("glm4moe", sections, n_rotated, where))


def solar_open(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Solar Open: a GLM-4-MoE with experts in every layer, whose heads are rotated."""
    e = read_config(_Experts, with_expert_count(config), where)
    always = {
        "first_k_dense_replace": 0,
        "use_qk_norm": False,
        "intermediate_size": e.moe_intermediate_size,
    }
    stated = {"rope_theta": 1e6, "head_dim": 128, "rms_norm_eps": 1e-5, **config, **always}
    found = glm4moe(stated, where, partial=1.0)
    # No layer is dense.
    keys = {k: v for k, v in found.keys.items() if k != "glm4moe.feed_forward_length"}
    return replace(found, keys=keys)


_SETTINGS = Settings(
    read=DECODER | reads(_Experts, more="n_routed_experts num_local_experts"),
    harmless=NO_WINDOW | harmless("checkpoints state num_nextn_predict_layers", "num_mtp_layers"),
)
_OF_SOLAR = Settings(
    read=_SETTINGS.read - {"first_k_dense_replace", "use_qk_norm", "intermediate_size"},
    harmless=NO_WINDOW | harmless("no layer is dense", "intermediate_size"),
    only=constant(0, "first_k_dense_replace") | constant(False, "use_qk_norm"),
)
FAMILIES = {
    "Glm4MoeForCausalLM": Declared(glm4moe, _SETTINGS),
    "Glm4vMoeForConditionalGeneration": Wrapped(
        Declared(glm4vmoe, replace(_SETTINGS, of_rope=SECTIONS))
    ),
    "SolarOpenForCausalLM": Declared(solar_open, _OF_SOLAR),
}
GRAPHS = {
    "glm4moe": GGUFGraph("Glm4MoeForCausalLM"),
}
