"""MiniMax M2: part of each head is rotated, experts chosen by sigmoids and a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, ExpertsCount, Natural, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    OUTPUT,
    OUTPUT_NORM,
    decoder_sizes,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import output_apart
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    score_bias_row,
    with_expert_count,
)
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.positions.rope import rope_settings
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Only,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.errors import ArchitectureError

NAME = "minimax-m2"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_BLOCK = _IN + "block_sparse_moe."
_LAYER = (
    *ATTENTION,
    # Norms of all heads together.
    Row(_IN + "self_attn.q_norm.weight", _OUT + "attn_q_norm.weight", "q"),
    Row(_IN + "self_attn.k_norm.weight", _OUT + "attn_k_norm.weight", "kv"),
    router_row(_BLOCK + "gate.weight", _IN + "mlp.gate.weight"),
    score_bias_row(_BLOCK + "e_score_correction_bias", _IN + "mlp.e_score_correction_bias"),
    *expert_rows(_BLOCK, gate="w1", up="w3", down="w2"),
)


@dataclass(frozen=True)
class _Own:
    """config.json's settings besides those of all decoders."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count
    num_mtp_modules: Natural = 0
    rotary_dim: Count | None = None


def minimax_m2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a MiniMax M2; the weights of the chosen experts sum to one."""
    config = {"rope_theta": 5e6, **config}  # transformers' default
    own = read_config(_Own, with_expert_count(config), where)
    c, rope = read_partial(with_factor(config, own.rotary_dim), where, 128, partial=1.0)
    ArchitectureError.raise_any(output_apart(c, where))
    if c.attention_bias:
        raise ArchitectureError(
            f"{where}: attention_bias is true; llama.cpp's {NAME} has no biases in attention"
        )
    routing = Routing(
        own.num_experts,
        own.num_experts_per_tok,
        expert_ffn=c.intermediate_size,
        gating=SIGMOID,
    )
    n = c.num_hidden_layers
    ahead = "|".join(str(layer) for layer in range(n, n + own.num_mtp_modules))
    left_out = {
        rf"model\.layers\.({ahead})\..*": (
            "layers that predict further tokens, which llama.cpp does not compute for this family"
        )
    }
    return Architecture(
        name=NAME,
        keys=partial_keys(NAME, c, rope) | routing_keys(NAME, routing),
        rows=(*EMBEDDING, *_LAYER, *OUTPUT_NORM, *OUTPUT),
        sizes={
            **decoder_sizes(c),
            "experts": own.num_experts,
            "expert_ffn": c.intermediate_size,
        },
        n_layers=n,
        tied=None,
        ignored=IGNORED | (left_out if ahead else {}),
        n_experts=own.num_experts,
    )


def with_factor(config: Mapping[str, Any], rotary_dim: int | None) -> Mapping[str, Any]:
    """Return config.json with partial_rotary_factor; published files state rotary_dim."""
    key = "partial_rotary_factor"
    stated = (config.get(key), rope_settings(config).get(key))
    size = config.get("head_dim") or 128
    if rotary_dim is None or any(factor is not None for factor in stated):
        return config
    # A size that is no number is reported with the other settings of all decoders.
    return {**config, key: rotary_dim / size} if isinstance(size, int) else config


FAMILIES = {
    "MiniMaxM2ForCausalLM": Declared(
        minimax_m2,
        Settings(
            read=DECODER | reads(_Own, more="num_local_experts"),
            harmless=NO_WINDOW
            | harmless("no layer has it", "mlp_intermediate_size shared_moe_mode")
            | harmless("the model's own code has one kind of layer", "attn_type_list")
            | harmless(
                "of layers that predict further tokens, which are left out",
                "use_mtp num_mtp_modules mtp_transformer_layers",
            )
            | harmless("repeats max_position_embeddings", "max_model_len"),
            only={
                **constant("sigmoid", "scoring_func"),
                **constant("per_layer", "qk_norm_type"),
                **constant(True, "use_qk_norm use_routing_bias"),
                **constant(
                    1.0,
                    "layernorm_full_attention_beta layernorm_linear_attention_beta"
                    " layernorm_mlp_beta",
                ),
                "shared_intermediate_size": Only((0,), "llama.cpp's graph has no shared expert"),
            },
        ),
    ),
}
GRAPHS = {
    "minimax-m2": GGUFGraph("MiniMaxM2ForCausalLM"),
}
