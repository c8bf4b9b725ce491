"""Qwen3-Next: three layers of linear attention (gated delta net), then one of gated attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from dynquant.arch.base import Architecture, Prediction, Row, Via, on
from dynquant.arch.config import Count, read_config
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
from dynquant.arch.families.qwen_moe import ROUTED, SHARED, read_experts
from dynquant.arch.graph_limits import fixed
from dynquant.arch.rope import read_rope
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, booleans, u32
from dynquant.transforms import negated_exp, parts_of_groups, plus_one, squeezed

_IN, _OUT = "model.layers.{}.", "blk.{}."
_LINEAR = _IN + "linear_attn."
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
_DELTA = (
    Row(_LINEAR + "in_proj_qkvz.weight", _OUT + "attn_qkv.weight", "qkvz hidden"),
    Row(_LINEAR + "in_proj_qkvz.weight", _OUT + "attn_gate.weight", "qkvz hidden"),
    Row(_LINEAR + "in_proj_ba.weight", _OUT + "ssm_ba.weight", "ba hidden"),
    Row(_LINEAR + "conv1d.weight", _OUT + "ssm_conv1d.weight", "qkv one kernel"),
    Row(_LINEAR + "dt_bias", _OUT + "ssm_dt.bias", "v_heads"),
    Row(_LINEAR + "A_log", _OUT + "ssm_a", "v_heads"),
    Row(_LINEAR + "norm.weight", _OUT + "ssm_norm.weight", "v_head"),
    Row(_LINEAR + "out_proj.weight", _OUT + "ssm_out.weight", "hidden v"),
)
_AHEAD = (
    Row("mtp.fc.weight", _OUT + "nextn.eh_proj.weight", "hidden hidden_twice"),
    Row("mtp.pre_fc_norm_embedding.weight", _OUT + "nextn.enorm.weight", "hidden"),
    Row("mtp.pre_fc_norm_hidden.weight", _OUT + "nextn.hnorm.weight", "hidden"),
    Row("mtp.norm.weight", _OUT + "nextn.shared_head_norm.weight", "hidden"),
    *(
        replace(row, stored=row.stored.replace(_IN, "mtp.layers.0."))
        for row in (*_NORMS, *_FULL, *ROUTED, *SHARED)
    ),
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


@dataclass(frozen=True)
class _Linear:
    """Linear attention, with the names of config.json and the defaults of transformers."""

    linear_conv_kernel_dim: Count = 4
    linear_key_head_dim: Count = 128
    linear_value_head_dim: Count = 128
    linear_num_key_heads: Count = 16
    linear_num_value_heads: Count = 32
    full_attention_interval: Count = 4
    layer_types: tuple[str, ...] | None = None

    @property
    def n_qk(self) -> int:
        """Rows of all queries; also of all keys."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def n_v(self) -> int:
        """Rows of all values; also of their gates."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows of linear attention name."""
        return {
            "qkv": 2 * self.n_qk + self.n_v,
            "qkvz": 2 * self.n_qk + 2 * self.n_v,
            "ba": 2 * self.linear_num_value_heads,
            "kernel": self.linear_conv_kernel_dim,
            "v_heads": self.linear_num_value_heads,
            "v_head": self.linear_value_head_dim,
            "v": self.n_v,
        }

    @property
    def via(self) -> dict[str, Via]:
        """Transforms by role: each key head's query, key, values and gates are stored together."""
        head, groups = self.linear_key_head_dim, self.linear_num_key_heads
        values = 2 * head + self.n_v // groups
        qkv = ((0, head), (head, 2 * head), (2 * head, values))
        gate = ((values, values + self.n_v // groups),)
        return {
            "attn_qkv": partial(parts_of_groups, n_groups=groups, parts=qkv),
            "attn_gate": partial(parts_of_groups, n_groups=groups, parts=gate),
            "ssm_conv1d": partial(squeezed, dimension=1),
            "ssm_a": negated_exp,
        }

    def keys(self) -> Keys:
        """Return the keys, which llama.cpp shares with state space models."""
        keys = {
            "ssm.conv_kernel": self.linear_conv_kernel_dim,
            "ssm.state_size": self.linear_key_head_dim,
            "ssm.group_count": self.linear_num_key_heads,
            "ssm.time_step_rank": self.linear_num_value_heads,
            "ssm.inner_size": self.n_v,
            "full_attention_interval": self.full_attention_interval,
        }
        return {f"qwen3next.{name}": u32(value) for name, value in keys.items()}


def _problems(linear: _Linear, n_layers: int, where: str) -> Iterator[str]:
    yield from fixed(linear, {"linear_value_head_dim": linear.linear_key_head_dim}, where)
    if linear.linear_num_value_heads % linear.linear_num_key_heads:
        yield (
            f"{where}: linear_num_value_heads {linear.linear_num_value_heads} is not a multiple of"
            f" linear_num_key_heads {linear.linear_num_key_heads}"
        )
    types = linear.layer_types
    if types and (len(types) != n_layers or not {*types} <= {"linear_attention", "full_attention"}):
        yield (
            f"{where}: layer_types is {', '.join(types)}; it must have linear_attention or"
            f" full_attention for each of {n_layers} layers"
        )


def qwen3next(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen3-Next: experts in every layer; most checkpoints have a prediction layer."""
    c = read_decoder(config, where, head_dim=256)
    rope = read_rope(config, where, SCALINGS, partial=0.25)
    # transformers' defaults.
    completed = {"shared_expert_intermediate_size": 512, "norm_topk_prob": True, **config}
    experts = read_experts(completed, where, norm_topk_prob=True)
    linear = read_config(_Linear, config, where)
    n = c.num_hidden_layers
    ArchitectureError.raise_any(
        chain(fixed(c, {"attention_bias": False}, where), _problems(linear, n, where))
    )
    recurrent = [
        (layer + 1) % linear.full_attention_interval != 0
        if linear.layer_types is None
        else linear.layer_types[layer] == "linear_attention"
        for layer in range(n)
    ]
    keys = (
        decoder_keys("qwen3next", c, rope, c.n_per_head)
        | routing_keys("qwen3next", experts.routing)
        | linear.keys()
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
            *on([layer for layer in range(n) if recurrent[layer]], _DELTA),
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
    )


FAMILIES = {"Qwen3NextForCausalLM": qwen3next}
