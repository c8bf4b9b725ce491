"""Muse Glimmer: windows with rope, full attention without it, gated attention, scaled queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from dynquant.arch.attention.windows import window_keys
from dynquant.arch.base import Architecture, ModelTensor, Row
from dynquant.arch.config import Count, Positive, read_config, without_nulls
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    Config,
    decoder_keys,
    decoder_sizes,
    interleaved_pairs,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.positions.rope import Rope, read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, constant, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import booleans, f32
from dynquant.tensors import Computed
from dynquant.transforms import plus_one

NAME = "muse-glimmer"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_LAYER = (
    Row(_IN + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    *(row for row in ATTENTION if "layernorm" not in row.stored),
    Row(_IN + "self_attn.gate_proj.weight", _OUT + "attn_gate.weight", "q hidden"),
    Row(_IN + "post_attention_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
    Row(_IN + "pre_feedforward_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
    *MLP,
    Row(_IN + "post_feedforward_layernorm.weight", _OUT + "post_ffw_norm.weight", "hidden"),
)
_FROM_ONE = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
"""Norms that are stored minus one, unlike the norm before the output matrix."""

_PATTERN = 4
"""Every fourth layer has full attention, counted from the last in transformers."""


@dataclass(frozen=True)
class _Muse:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    qk_scale_factor: Positive = 3.87
    output_multiplier: Positive = 0.19611613513818404
    final_logit_softcapping: Positive = 20.0
    hidden_activation: str = "silu"
    layer_types: tuple[str, ...] | None = None
    layer_rope_theta: tuple[float, ...] | None = None
    sliding_window: Count = 2048

    def slides(self, n_layers: int) -> tuple[bool, ...]:
        """Return which layers have a window."""
        if self.layer_types is not None:
            return tuple(kind == "sliding_attention" for kind in self.layer_types)
        return tuple((n_layers - 1 - layer) % _PATTERN != 0 for layer in range(n_layers))

    def rotates(self, n_layers: int) -> tuple[bool, ...]:
        """Return which layers have rotary embeddings."""
        if self.layer_rope_theta is not None:
            return tuple(theta != 0 for theta in self.layer_rope_theta)
        return tuple((n_layers - 1 - layer) % _PATTERN != 0 for layer in range(n_layers))


def muse_glimmer(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a Muse Glimmer.

    llama.cpp has no key for the factor of the queries; norms of Q and K, which are not stored,
    have it.
    """
    present = without_nulls(config)
    own = read_config(_Muse, present, where)
    completed = {
        "sliding_window": own.sliding_window,
        **present,
        "hidden_act": own.hidden_activation,
    }
    c = read_decoder(completed, where, head_dim=128)
    rope = read_rope(completed, where, known=())
    ArchitectureError.raise_any(_problems(c, own, rope, where))
    slides = own.slides(c.num_hidden_layers)
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, rope, c.n_per_head)
        | window_keys(NAME, completed, slides, _PATTERN, where)
        | {
            f"{NAME}.attention.sliding_window_pattern": booleans(slides),
            f"{NAME}.final_logit_softcapping": f32(own.final_logit_softcapping),
            f"{NAME}.logit_scale": f32(own.output_multiplier),
        },
        rows=(*EMBEDDING, *_LAYER, *OUTPUT_NORM, *OUTPUT),
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=None,
        via={
            **dict.fromkeys(_FROM_ONE, plus_one),
            **interleaved_pairs(c),
        },
        extra=tuple(_norms(c, own.qk_scale_factor)),
        ignored=IGNORED,
    )


def _norms(c: Config, factor: float) -> Iterator[ModelTensor]:
    """Yield norms of Q, which multiply by the factor, and of K."""
    for layer in range(c.num_hidden_layers):
        for role, value in (("attn_q_norm", factor), ("attn_k_norm", 1.0)):
            values = np.full(c.n_per_head, value, np.float32)
            yield ModelTensor(f"blk.{layer}.{role}.weight", Computed(values))


def _problems(c: Config, own: _Muse, rope: Rope, where: str) -> Iterator[str]:
    yield from chain(fixed(c, {"attention_bias": False}, where), output_apart(c, where))
    n = c.num_hidden_layers
    if own.rotates(n) != own.slides(n):
        yield (
            f"{where}: layer_rope_theta is not 0 for exactly the layers of layer_types with"
            " 'full_attention'; llama.cpp computes those, and no others, without rotary embeddings"
        )
    if {*(own.layer_rope_theta or ())} - {0, rope.rope_theta}:
        yield (
            f"{where}: layer_rope_theta has other values than 0 and rope_theta {rope.rope_theta:g};"
            " llama.cpp has one base for all layers"
        )


_MUSE = Declared(
    muse_glimmer,
    Settings(read=DECODER | reads(_Muse), only=constant(1e-8, "post_norm_eps")),
)
FAMILIES = {"MuseGlimmerForConditionalGeneration": Wrapped(_MUSE)}
GRAPHS = {
    "muse-glimmer": GGUFGraph(
        "MuseGlimmerForConditionalGeneration",
        in_layers=frozenset({"attn_k_norm.weight", "attn_q_norm.weight"}),
    ),
}
