"""Qwen3-Next: three layers of linear attention (gated delta net), then one of gated attention."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from dynquant.arch.attention.linear import LAYER_TYPES, Layout, Linear, recurrent_of
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
from dynquant.arch.families.qwen import SCALINGS
from dynquant.arch.families.qwen_moe import READ, ROUTED, SHARED, Experts, read_experts
from dynquant.arch.gguf_files.graph import GATE_UP, QKV, GGUFGraph
from dynquant.arch.graph_limits import fixed, other_epsilon
from dynquant.arch.mixtures.experts import routing_keys
from dynquant.arch.positions.rope import read_rope
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
AHEAD = (
    Row("mtp.fc.weight", _OUT + "nextn.eh_proj.weight", "hidden hidden_twice"),
    Row("mtp.pre_fc_norm_embedding.weight", _OUT + "nextn.enorm.weight", "hidden"),
    Row("mtp.pre_fc_norm_hidden.weight", _OUT + "nextn.hnorm.weight", "hidden"),
    Row("mtp.norm.weight", _OUT + "nextn.shared_head_norm.weight", "hidden"),
)
"""What a prediction layer has besides a decoder layer."""

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

MIXTURE = (*ROUTED, *SHARED)
"""The feed-forward rows of a layer with experts."""


def qwen3next(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen3-Next: experts in every layer; most checkpoints have a prediction layer."""
    # transformers' defaults.
    completed = {"shared_expert_intermediate_size": 512, "norm_topk_prob": True, **config}
    experts = read_experts(completed, where, norm_topk_prob=True)
    linear = read_config(Linear, config, where)
    return hybrid("qwen3next", config, where, linear, linear.by_key_head, MIXTURE, experts)


def hybrid(
    name: str,
    config: Mapping[str, Any],
    where: str,
    linear: Linear,
    layout: Layout,
    feed_forward: tuple[Row, ...],
    experts: Experts | None = None,
) -> Architecture:
    """Describe a model of layers with linear attention and layers with gated attention.

    layout:       how linear attention is stored
    feed_forward: its rows, in every layer
    experts:      those of every layer; None if there are none
    """
    c = read_decoder(config, where, head_dim=256)
    rope = read_rope(config, where, SCALINGS, partial=0.25)
    n = c.num_hidden_layers
    ArchitectureError.raise_any(
        chain(fixed(c, {"attention_bias": False}, where), linear.problems(where))
    )
    recurrent = linear.recurrent(n)
    if len({*recurrent}) == 1:
        raise ArchitectureError(
            f"{where}: all layers have {'linear' if recurrent[0] else 'full'} attention; llama.cpp"
            " needs layers of both kinds in this family"
        )
    keys = (
        decoder_keys(name, c, rope, c.n_per_head)
        | (routing_keys(name, experts.routing) if experts else {})
        | linear.keys(name)
        | {
            f"{name}.attention.recurrent_layers": booleans(recurrent),
            f"{name}.rope.dimension_count": u32(int(c.n_per_head * rope.partial_rotary_factor)),
        }
    )
    ahead: Keys = {
        f"{name}.block_count": u32(n + 1),
        f"{name}.nextn_predict_layers": u32(1),
        f"{name}.attention.recurrent_layers": booleans([*recurrent, False]),
    }
    as_ahead = (row.within(_IN, "mtp.layers.0.") for row in (*_NORMS, *_FULL, *feed_forward))
    sizes = decoder_sizes(c)
    return Architecture(
        name=name,
        keys=keys,
        rows=(
            *EMBEDDING,
            *on(range(n), _NORMS),
            *on([layer for layer in range(n) if not recurrent[layer]], _FULL),
            *on([layer for layer in range(n) if recurrent[layer]], layout.rows),
            *on(range(n), feed_forward),
            *on([n], (*AHEAD, *as_ahead)),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **sizes,
            **(experts.sizes if experts else {}),
            **linear.sizes,
            "gated_q": 2 * sizes["q"],
            "hidden_twice": 2 * sizes["hidden"],
        },
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        via={**dict.fromkeys(_FROM_ONE, plus_one), **layout.via},
        ignored=IGNORED,
        n_experts=experts.num_experts if experts else 0,
        prediction=Prediction(range(n, n + 1), ahead),
        deviations=other_epsilon(c, "the norms of Q and K in linear attention", where),
    )


FAMILIES = {
    "Qwen3NextForCausalLM": Declared(
        qwen3next,
        Settings(read=READ | reads(Linear), harmless=NO_WINDOW, layer_types=LAYER_TYPES),
    )
}
_QKVZ = (frozenset({"attn_qkv.weight", "attn_gate.weight"}), frozenset({"ssm_in.weight"}))
"""The inputs of linear attention, which older files of llama.cpp hold as one matrix."""

GRAPHS = {
    "qwen3next": GGUFGraph(
        "Qwen3NextForCausalLM", layers=recurrent_of, fused=(QKV, GATE_UP, _QKVZ)
    ),
}
