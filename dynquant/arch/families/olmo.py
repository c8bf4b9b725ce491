"""OLMo 2 and 3, with norms on the outputs of attention and MLP, and OLMoE with experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

from dynquant.arch.base import Architecture, Row, renamed
from dynquant.arch.config import Count, ExpertsCount, LayersCount, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, heads_fill_hidden, output_apart
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    with_expert_count,
)
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import booleans, u32

_IN, _OUT = "model.layers.{}.", "blk.{}."
# Over all heads together, unlike Qwen3's.
_QK_NORMS = (
    Row(_IN + "self_attn.q_norm.weight", _OUT + "attn_q_norm.weight", "q"),
    Row(_IN + "self_attn.k_norm.weight", _OUT + "attn_k_norm.weight", "kv"),
)
_POST_NORMS = (
    Row(_IN + "post_attention_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
    Row(_IN + "post_feedforward_layernorm.weight", _OUT + "post_ffw_norm.weight", "hidden"),
)
_PROJECTIONS = tuple(row for row in ATTENTION if "layernorm" not in row.stored)


def olmo2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an OLMo 2: norms on Q, on K, and on the outputs of attention and MLP."""
    c = read_decoder(config, where)
    rope = read_rope(config, where, ("linear", "dynamic", "yarn"))
    ArchitectureError.raise_any(
        chain(
            fixed(c, {"attention_bias": False}, where),
            heads_fill_hidden(c, where),
            output_apart(c, where),
        )
    )
    return Architecture(
        name="olmo2",
        keys=decoder_keys("olmo2", c, rope, c.head_dim),
        rows=(
            *EMBEDDING,
            *_PROJECTIONS,
            *_QK_NORMS,
            *_POST_NORMS,
            *MLP,
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=None,
        ignored=IGNORED,
    )


@dataclass(frozen=True)
class _Windows:
    num_hidden_layers: LayersCount
    sliding_window: Count = 4096
    layer_types: tuple[str, ...] | None = None


def olmo3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an OLMo 3: an OLMo 2 in which three of four layers have a sliding window."""
    config = {"rope_theta": 500000.0, **config}  # transformers' default
    dense = olmo2(_one_rope(config, where), where)
    windows = read_config(_Windows, config, where)
    n = windows.num_hidden_layers
    types = windows.layer_types or tuple(
        "full_attention" if layer % 4 == 3 else "sliding_attention" for layer in range(n)
    )
    return replace(
        dense,
        keys=dense.keys
        | {
            "olmo2.attention.sliding_window": u32(windows.sliding_window),
            "olmo2.attention.sliding_window_pattern": booleans(
                [kind == "sliding_attention" for kind in types]
            ),
        },
    )


def _one_rope(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return config.json with the rope settings of the layers without a window.

    Layers with a window have the same base without scaling: always in llama.cpp, and in
    transformers if config.json has one set of settings.
    """
    found = config.get("rope_parameters")
    if not isinstance(found, dict) or "full_attention" not in found:
        return config
    sets = cast("dict[str, dict[str, Any]]", found)
    full, windowed = sets["full_attention"], sets.get("sliding_attention", {})
    if windowed and windowed.get("rope_type", "default") != "default":
        raise ArchitectureError(
            f"{where}: rope_parameters: sliding_attention has rope_type"
            f" {windowed['rope_type']!r}; llama.cpp computes these layers without scaling"
        )
    if windowed and windowed.get("rope_theta") != full.get("rope_theta"):
        raise ArchitectureError(
            f"{where}: rope_parameters: rope_theta is {windowed.get('rope_theta')} for"
            f" sliding_attention and {full.get('rope_theta')} for full_attention;"
            " llama.cpp needs the same"
        )
    return {**config, "rope_parameters": full}


@dataclass(frozen=True)
class _Experts:
    num_experts: ExpertsCount
    num_experts_per_tok: Count
    norm_topk_prob: Truth = False
    clip_qkv: float | None = None


def olmoe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an OLMoE: layer norms as in a Llama, norms on Q and K as in an OLMo 2."""
    dense = olmo2(config, where)
    c = read_decoder(config, where)
    experts = read_config(_Experts, with_expert_count(config), where)
    ArchitectureError.raise_any(
        chain(
            fixed(experts, {"norm_topk_prob": False, "clip_qkv": None}, where),
            fixed(c, {"n_head_kv": c.num_attention_heads}, where),
        )
    )
    block = "model.layers.{}.mlp."
    routing = Routing(experts.num_experts, experts.num_experts_per_tok)
    return replace(
        dense,
        name="olmoe",
        keys=renamed(dense.keys, "olmoe") | routing_keys("olmoe", routing),
        rows=(
            *EMBEDDING,
            *ATTENTION,
            *_QK_NORMS,
            router_row(block + "gate.weight"),
            *expert_rows(block, gate="gate_proj", up="up_proj", down="down_proj"),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **dense.sizes,
            "experts": experts.num_experts,
            "expert_ffn": c.intermediate_size,
        },
        n_experts=experts.num_experts,
    )


FAMILIES = {
    "Olmo2ForCausalLM": Declared(olmo2, Settings(read=DECODER, harmless=NO_WINDOW)),
    "Olmo3ForCausalLM": Declared(olmo3, Settings(read=DECODER | reads(_Windows))),
    "OlmoeForCausalLM": Declared(
        olmoe,
        Settings(read=DECODER | reads(_Experts, more="num_local_experts"), harmless=NO_WINDOW),
    ),
}
GRAPHS = {
    "olmo2": GGUFGraph("Olmo2ForCausalLM"),
    "olmoe": GGUFGraph("OlmoeForCausalLM"),
}
