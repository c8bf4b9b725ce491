"""Apertus: norms on the heads of Q and K, and the activation xIELU with stored numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.base import Architecture, ModelTensor, Row
from dynquant.arch.config import without_nulls
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    O_BIAS,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    QKV_BIASES,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.positions.rope import llama3_factors, read_rope
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import Computed

_NAME = "apertus"
_ACTIVATION = "xielu"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_LAYER = (
    Row(_IN + "attention_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    *(row for row in ATTENTION if "layernorm" not in row.stored),
    *QK_NORMS,
    Row(_IN + "feedforward_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
    *(row for row in MLP if ".gate_proj." not in row.stored),
)
_NUMBERS = {"alpha_p": "one", "alpha_n": "one", "beta": "", "eps": ""}
"""The numbers of an activation, with their stored shapes."""

_XIELU = tuple(
    Row(f"{_IN}mlp.act_fn.{name}", f"{_OUT}xielu.{name}", shape) for name, shape in _NUMBERS.items()
)
_DEFAULT = {
    "rope_type": "llama3",
    "rope_theta": 12e6,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
"""transformers' rope settings for a config.json without any."""


def apertus(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an Apertus; llama.cpp reads the numbers of the activations from keys."""
    present = without_nulls(config)
    if not present.get("rope_parameters") and not present.get("rope_scaling"):
        present["rope_parameters"] = {**_DEFAULT, "rope_theta": present.get("rope_theta", 12e6)}
    present = {"rope_theta": 12e6, "hidden_act": _ACTIVATION, **present}
    c = read_decoder(present, where, activation=(_ACTIVATION,))
    rope = read_rope(present, where, known=("linear", "dynamic", "yarn", "llama3"))
    ArchitectureError.raise_any((*fixed(c, {"mlp_bias": False}, where), *output_apart(c, where)))
    extra: tuple[ModelTensor, ...] = ()
    if rope.rope_type == "llama3":
        extra = (ModelTensor("rope_freqs.weight", Computed(llama3_factors(rope, c.n_per_head))),)
    return Architecture(
        name=_NAME,
        keys=decoder_keys(_NAME, c, rope, c.n_per_head)
        | {
            f"{_NAME}.vocab_size": u32(c.vocab_size),
            f"{_NAME}.rope.dimension_count": u32(c.n_per_head),
        },
        rows=(
            *(*EMBEDDING, *_LAYER, *_XIELU),
            *(QKV_BIASES + O_BIAS if c.attention_bias else ()),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={**decoder_sizes(c), "one": 1},
        n_layers=c.num_hidden_layers,
        tied=None,
        extra=extra,
        numbers=frozenset(f"xielu.{name}" for name in _NUMBERS),
        ignored=IGNORED,
    )


FAMILIES = {
    "ApertusForCausalLM": Declared(apertus, Settings(read=DECODER, harmless=NO_WINDOW)),
}
GRAPHS = {
    "apertus": GGUFGraph("ApertusForCausalLM"),
}
