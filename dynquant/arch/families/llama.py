"""Llama 2 and 3, Mistral, Mixtral: one graph in llama.cpp, without sliding windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.attention.windows import window_left_out
from dynquant.arch.base import Architecture, ModelTensor
from dynquant.arch.config import Count, ExpertsCount, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP_BIASES,
    O_BIAS,
    OUTPUT,
    OUTPUT_NORM,
    QKV_BIASES,
    TIED,
    WEIGHTS,
    decoder_keys,
    decoder_sizes,
    interleaved_pairs,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    with_expert_count,
)
from dynquant.arch.positions.rope import llama3_factors, read_rope
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, constant, harmless, reads
from dynquant.keys import u32
from dynquant.tensors import Computed

SCALINGS = ("linear", "dynamic", "yarn", "llama3")
"""The scalings of the rope that llama.cpp's graph of Llama computes."""


def llama(config: Mapping[str, Any], where: str, known: tuple[str, ...] = SCALINGS) -> Architecture:
    """Describe a Llama: Q and K are reordered to interleaved rotary pairs.

    known: scalings of the rope that the family supports
    """
    c = read_decoder(config, where)
    rope = read_rope(config, where, known)
    rows = WEIGHTS
    if c.attention_bias:
        rows += QKV_BIASES + O_BIAS
    if c.mlp_bias:
        rows += MLP_BIASES
    extra: tuple[ModelTensor, ...] = ()
    if rope.rope_type == "llama3":
        extra = (ModelTensor("rope_freqs.weight", Computed(llama3_factors(rope, c.n_per_head))),)
    return Architecture(
        name="llama",
        keys=decoder_keys("llama", c, rope, c.n_per_head)
        | {"llama.vocab_size": u32(c.vocab_size), "llama.rope.dimension_count": u32(c.n_per_head)},
        rows=rows,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        via=interleaved_pairs(c),
        extra=extra,
        ignored=IGNORED,
    )


def internlm3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an InternLM3: a Llama with heads of 128 weights."""
    return llama({"head_dim": 128, "rms_norm_eps": 1e-5, **config}, where)


def mistral(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Mistral: a Llama in llama.cpp, whose graph has no window."""
    # transformers' default; models after the first state null.
    return replace(llama(config, where), deviations=window_left_out(config, where, 4096))


@dataclass(frozen=True)
class _Experts:
    num_experts: ExpertsCount
    num_experts_per_tok: Count


def mixtral(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Mixtral: a Llama in llama.cpp, with experts of width `intermediate_size`."""
    config = {"rope_theta": 1e6, **config}  # transformers' default
    dense = llama(config, where)
    experts = read_config(_Experts, with_expert_count(config), where)
    block = "model.layers.{}.block_sparse_moe."
    routing = Routing(experts.num_experts, experts.num_experts_per_tok)
    ffn = dense.sizes["ffn"]
    return replace(
        dense,
        keys=dense.keys | routing_keys("llama", routing),
        rows=(
            *EMBEDDING,
            *ATTENTION,
            router_row(block + "gate.weight", "model.layers.{}.mlp.gate.weight"),
            *expert_rows(block, gate="w1", up="w3", down="w2"),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={**dense.sizes, "experts": experts.num_experts, "expert_ffn": ffn},
        n_experts=experts.num_experts,
        deviations=window_left_out(config, where),
    )


_LLAMA = Declared(
    llama,
    Settings(
        read=DECODER,
        harmless=NO_WINDOW
        | harmless("states who wrote the file", "is_llama_config")
        | harmless("repeats max_position_embeddings", "max_sequence_length"),
    ),
)
_WINDOW = {"sliding_window"}
FAMILIES = {
    "InternLM3ForCausalLM": Declared(
        internlm3,
        Settings(read=DECODER, harmless=NO_WINDOW, only=constant(False, "bias qkv_bias")),
    ),
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,  # spelling of the first conversions
    "MistralForCausalLM": Declared(mistral, Settings(read=DECODER | _WINDOW)),
    "MixtralForCausalLM": Declared(
        mixtral, Settings(read=DECODER | _WINDOW | reads(_Experts, more="num_local_experts"))
    ),
}


def _class_of(keys: FileKeys) -> str:
    """Return the class of a GGUF's model: Mixtrals have the same architecture."""
    return "MixtralForCausalLM" if keys.number("expert_count") else "LlamaForCausalLM"


GRAPHS = {
    "llama": GGUFGraph("LlamaForCausalLM", class_of=_class_of),
}
