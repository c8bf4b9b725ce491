"""Trinity (AFMoE): gated attention, windows, norms around each block, experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.attention.windows import layer_types, window_keys
from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import (
    Count,
    ExpertsCount,
    Natural,
    Positive,
    Truth,
    read_config,
    without_nulls,
)
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    score_bias_row,
    shared_rows,
)
from dynquant.arch.positions.rope import deviations, read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import u32

_NAME = "afmoe"
_PATTERN = 4
"""Every fourth layer has neither a window nor rope in llama.cpp's graph, without a key for it."""

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_BLOCK = _LAYER + "mlp."
_ATTENTION = (
    *(row for row in ATTENTION if "post_attention" not in row.stored),
    *QK_NORMS,
    Row(_LAYER + "self_attn.gate_proj.weight", _OUT + "attn_gate.weight", "q hidden"),
    Row(_LAYER + "post_attention_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
    Row(_LAYER + "pre_mlp_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
    Row(_LAYER + "post_mlp_layernorm.weight", _OUT + "post_ffw_norm.weight", "hidden"),
)
_EXPERTS = (
    router_row(_BLOCK + "router.gate.weight"),
    score_bias_row(_BLOCK + "expert_bias"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj"),
    *shared_rows(_BLOCK + "shared_experts."),
)


@dataclass(frozen=True)
class _Own:
    """Settings besides those of all decoders, with the defaults of transformers."""

    moe_intermediate_size: Count = 1408
    num_dense_layers: Natural = 1
    num_experts: ExpertsCount = 64
    num_experts_per_tok: Count = 6
    num_shared_experts: Count = 2
    route_scale: Positive = 1.0
    global_attn_every_n_layers: Count = _PATTERN
    mup_enabled: Truth = False


def afmoe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Trinity: three layers with a window and rope, then one with neither."""
    defaults = {"rms_norm_eps": 1e-5, "sliding_window": 1024, "max_position_embeddings": 16384}
    config = {**defaults, **without_nulls(config)}
    c = read_decoder(config, where, head_dim=128)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn"))
    own = read_config(_Own, config, where)
    n, n_dense = c.num_hidden_layers, min(own.num_dense_layers, c.num_hidden_layers)
    slides = layer_types(config, n, own.global_attn_every_n_layers, where)
    ArchitectureError.raise_any(_problems(c, own, slides, where))
    routing = Routing(
        own.num_experts,
        own.num_experts_per_tok,
        expert_ffn=own.moe_intermediate_size,
        n_shared=own.num_shared_experts,
        weights_scale=own.route_scale,
        weights_norm=True,
        gating=SIGMOID,
        n_leading_dense=n_dense,
    )
    return Architecture(
        name=_NAME,
        keys=decoder_keys(_NAME, c, rope, c.n_per_head)
        | {
            f"{_NAME}.vocab_size": u32(c.vocab_size),
            f"{_NAME}.rope.dimension_count": u32(c.n_per_head),
        }
        | window_keys(_NAME, config, slides, _PATTERN, where)
        | routing_keys(_NAME, routing),
        rows=(
            *EMBEDDING,
            *_ATTENTION,
            *on(range(n_dense), MLP),
            *on(range(n_dense, n), _EXPERTS),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            "experts": own.num_experts,
            "expert_ffn": own.moe_intermediate_size,
            "shared_ffn": own.moe_intermediate_size * own.num_shared_experts,
        },
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        n_experts=own.num_experts,
        deviations=deviations(rope, where),
    )


def _problems(c: Config, own: _Own, slides: tuple[bool, ...], where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    yield from fixed(own, {"mup_enabled": True}, where)
    if slides != tuple((layer + 1) % _PATTERN != 0 for layer in range(len(slides))):
        yield (
            f"{where}: layer_types and global_attn_every_n_layers: llama.cpp computes this family"
            f" with full attention in every {_PATTERN}th layer and a window in all others"
        )


FAMILIES = {
    "AfmoeForCausalLM": Declared(
        afmoe,
        Settings(
            read=DECODER | reads(_Own, more="sliding_window layer_types num_local_experts"),
            harmless=harmless("used while training only", "load_balance_coeff")
            | harmless("how experts are computed", "use_grouped_mm"),
            only=constant(True, "route_norm")
            | constant("sigmoid", "score_func")
            | constant(1, "n_group topk_group num_expert_groups num_limited_groups"),
        ),
    ),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return which layers of a GGUF have experts."""
    return {"num_dense_layers": keys.n_dense}


GRAPHS = {
    "afmoe": GGUFGraph("AfmoeForCausalLM", settings={"mup_enabled": True}, layers=_layers_of),
}
