"""Qwen3-Next: three layers of linear attention (gated delta net), then one of gated attention."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from dynquant.arch.base import Architecture, Prediction, Row, on
from dynquant.arch.config import read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    TIED,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.experts import routing_keys
from dynquant.arch.families.qwen import SCALINGS
from dynquant.arch.families.qwen_moe import READ, ROUTED, SHARED, read_experts
from dynquant.arch.graph_limits import fixed, other_epsilon
from dynquant.arch.linear_attention import LAYER_TYPES, LINEAR_ATTENTION, Linear
from dynquant.arch.rope import read_rope
from dynquant.arch.settings import NO_WINDOW, Declared, Settings, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, booleans, u32
from dynquant.transforms import plus_one

_IN, _OUT = "model.layers.{}.", "blk.{}."
_NORMS = (
    Row(_IN + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_IN + "post_attention_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
)
# One matrix holds queries and output gates, alternating by head.
_FULL = (
    Row(_IN + "self_attn.q_proj.weight", _OUT + "attn_q.weight", "gated_q hidden"),
    *(r for r in ATTENTION if ".self_attn." in r.stored and ".q_proj." not in r.stored),
    *QK_NORMS,
)
_AHEAD = (
    Row("mtp.fc.weight", _OUT + "nextn.eh_proj.weight", "hidden hidden_twice"),
    Row("mtp.pre_fc_norm_embedding.weight", _OUT + "nextn.enorm.weight", "hidden"),
    Row("mtp.pre_fc_norm_hidden.weight", _OUT + "nextn.hnorm.weight", "hidden"),
    Row("mtp.norm.weight", _OUT + "nextn.shared_head_norm.weight", "hidden"),
    *(row.within(_IN, "mtp.layers.0.") for row in (*_NORMS, *_FULL, *ROUTED, *SHARED)),
)
_FROM_ONE = (
    "attn_norm",
    "post_attention_norm",
    "attn_q_norm",
    "attn_k_norm",
    "output_norm",
    "nextn.enorm",
    "nextn.hnorm",
    "nextn.shared_head_norm",
)
"""Norms that are stored minus one, unlike the norm in linear attention."""


def qwen3next(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen3-Next: experts in every layer; most checkpoints have a prediction layer."""
    c = read_decoder(config, where, head_dim=256)
    rope = read_rope(config, where, SCALINGS, partial=0.25)
    # transformers' defaults.
    completed = {"shared_expert_intermediate_size": 512, "norm_topk_prob": True, **config}
    experts = read_experts(completed, where, norm_topk_prob=True)
    linear = read_config(Linear, config, where)
    n = c.num_hidden_layers
    ArchitectureError.raise_any(
        chain(fixed(c, {"attention_bias": False}, where), linear.problems(where))
    )
    recurrent = linear.recurrent(n)
    keys = (
        decoder_keys("qwen3next", c, rope, c.n_per_head)
        | routing_keys("qwen3next", experts.routing)
        | linear.keys("qwen3next")
        | {
            "qwen3next.attention.recurrent_layers": booleans(recurrent),
            "qwen3next.rope.dimension_count": u32(int(c.n_per_head * rope.partial_rotary_factor)),
        }
    )
    ahead: Keys = {
        "qwen3next.block_count": u32(n + 1),
        "qwen3next.nextn_predict_layers": u32(1),
        "qwen3next.attention.recurrent_layers": booleans([*recurrent, False]),
    }
    sizes = decoder_sizes(c)
    return Architecture(
        name="qwen3next",
        keys=keys,
        rows=(
            *EMBEDDING,
            *on(range(n), _NORMS),
            *on([layer for layer in range(n) if not recurrent[layer]], _FULL),
            *on([layer for layer in range(n) if recurrent[layer]], LINEAR_ATTENTION),
            *on(range(n), (*ROUTED, *SHARED)),
            *on([n], _AHEAD),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **sizes,
            **experts.sizes,
            **linear.sizes,
            "gated_q": 2 * sizes["q"],
            "hidden_twice": 2 * sizes["hidden"],
        },
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        via={**dict.fromkeys(_FROM_ONE, plus_one), **linear.via},
        ignored=IGNORED,
        n_experts=experts.num_experts,
        prediction=Prediction(range(n, n + 1), ahead),
        deviations=other_epsilon(c, "the norms of Q and K in linear attention", where),
    )


FAMILIES = {
    "Qwen3NextForCausalLM": Declared(
        qwen3next,
        Settings(read=READ | reads(Linear), harmless=NO_WINDOW, layer_types=LAYER_TYPES),
    )
}
