"""Llama 4 (text): chunked attention, layers without rotary embeddings, experts in some layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, on, renamed
from dynquant.arch.config import Count, ExpertsCount, Positive, Truth, read_config
from dynquant.arch.decoder import ATTENTION, EMBEDDING, MLP, OUTPUT, OUTPUT_NORM
from dynquant.arch.families.llama import llama
from dynquant.arch.gguf_files.graph import SMALL, FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    shared_rows,
    with_expert_count,
)
from dynquant.arch.settings import DECODER, Declared, Only, Settings, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import u32

NAME = "llama4"
_BLOCK = "model.layers.{}.feed_forward."
_DENSE = tuple(row.within(".mlp.", ".feed_forward.") for row in MLP)
_EXPERTS = (
    router_row(_BLOCK + "router.weight"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj", outputs_last=True),
    *shared_rows(_BLOCK + "shared_expert."),
)


@dataclass(frozen=True)
class _Own:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count = 1
    intermediate_size: Count = 8192
    intermediate_size_mlp: Count = 16384
    interleave_moe_layer_step: Count = 1
    moe_layers: tuple[int, ...] | None = None
    use_qk_norm: Truth = True
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: Count = 4
    attention_chunk_size: Count = 8192
    layer_types: tuple[str, ...] | None = None
    floor_scale: Count = 8192
    attn_scale: Positive = 0.1
    attention_bias: Truth = False


_CONSTANTS = {
    "attention_chunk_size": 8192,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "attention_bias": False,
}
"""Of llama.cpp's graph."""

_WITHOUT_NORMS = 128
"""The number of experts with which llama.cpp's graph has no norms of Q and K; else it has."""


def llama4(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Llama 4; rotary pairs are adjacent in the checkpoint, as in llama.cpp."""
    stated = {"rope_theta": 500000.0, "head_dim": 128, "rms_norm_eps": 1e-5, **config}
    own = read_config(_Own, with_expert_count(config), where)
    dense = llama({**stated, "intermediate_size": own.intermediate_size_mlp}, where)
    n, step = dense.n_layers, own.interleave_moe_layer_step
    problems = list(_problems(own, n, where))
    if config.get("attention_chunk_size", 8192) is None:
        problems.append(
            f"{where}: attention_chunk_size is null; llama.cpp computes this family with 8192"
        )
    ArchitectureError.raise_any(problems)
    routing = Routing(own.num_experts, own.num_experts_per_tok, expert_ffn=own.intermediate_size)
    sparse = range(step - 1, n, step)
    return replace(
        dense,
        name=NAME,
        keys=renamed(dense.keys, NAME)
        | routing_keys(NAME, routing)
        | {f"{NAME}.interleave_moe_layer_step": u32(step)},
        rows=(
            *(*EMBEDDING, *ATTENTION),
            *on([layer for layer in range(n) if layer not in sparse], _DENSE),
            *on(sparse, _EXPERTS),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={
            **dense.sizes,
            "experts": own.num_experts,
            "expert_ffn": own.intermediate_size,
            "shared_ffn": own.intermediate_size,
        },
        via={},
        n_experts=own.num_experts,
    )


def _problems(own: _Own, n_layers: int, where: str) -> Iterator[str]:
    yield from fixed(own, _CONSTANTS, where)
    has_norms = own.num_experts != _WITHOUT_NORMS
    if own.use_qk_norm != has_norms:
        yield (
            f"{where}: use_qk_norm is {own.use_qk_norm}; llama.cpp computes this family with"
            f" {has_norms} for {own.num_experts} experts"
        )
    layers, step = range(n_layers), own.interleave_moe_layer_step
    rotated = tuple(int((layer + 1) % 4 != 0) for layer in layers)
    kinds = tuple("chunked_attention" if r else "full_attention" for r in rotated)
    every = own.no_rope_layer_interval
    rotates = own.no_rope_layers or tuple(int((layer + 1) % every != 0) for layer in layers)
    if rotates != rotated:
        yield (
            f"{where}: no_rope_layers and no_rope_layer_interval name other layers than every"
            " fourth; llama.cpp computes this family with every fourth"
        )
    if own.layer_types not in (None, kinds):
        yield (
            f"{where}: layer_types does not have 'full_attention' in every fourth layer and"
            " 'chunked_attention' in all others, as llama.cpp's graph does"
        )
    if own.moe_layers is not None and set(own.moe_layers) != {*range(step - 1, n_layers, step)}:
        yield (
            f"{where}: moe_layers differs from the layers of interleave_moe_layer_step {step},"
            " which llama.cpp reads"
        )


_LLAMA4 = Wrapped(
    Declared(
        llama4,
        Settings(
            read=DECODER | reads(_Own, more="num_local_experts"),
            only={
                # The first files state 4, which is true.
                "attn_temperature_tuning": Only(
                    (True, 4), "llama.cpp computes this family with true"
                ),
            },
            layer_types=("full_attention", "chunked_attention"),
        ),
    )
)
FAMILIES = {
    "Llama4ForCausalLM": _LLAMA4,
    "Llama4ForConditionalGeneration": _LLAMA4,
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return which layers of a GGUF have experts, and whether the graph has norms of Q and K."""
    return {
        "intermediate_size_mlp": SMALL,
        "interleave_moe_layer_step": keys.number("interleave_moe_layer_step") or 1,
        "use_qk_norm": keys.number("expert_count") != 128,  # as the graph expects, see above
    }


GRAPHS = {
    "llama4": GGUFGraph("Llama4ForCausalLM", layers=_layers_of),
}
