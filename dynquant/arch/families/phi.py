"""Phi-3, Phi-4 and Phi-4-mini: Q, K and V in one matrix, gate and up in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from dynquant.arch.attention.windows import window_left_out
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Natural, read_config
from dynquant.arch.decoder import (
    EMBEDDING,
    IGNORED,
    OUTPUT,
    OUTPUT_NORM,
    TIED,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import heads_fill_hidden
from dynquant.arch.positions.longrope import longrope_attention, longrope_tensors
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, constant, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, u32

_IN, _OUT = "model.layers.{}.", "blk.{}."
_FUSED = (
    *EMBEDDING,
    Row(_IN + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_IN + "self_attn.qkv_proj.weight", _OUT + "attn_qkv.weight", "qkv hidden"),
    Row(_IN + "self_attn.o_proj.weight", _OUT + "attn_output.weight", "hidden q"),
    Row(_IN + "post_attention_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
    Row(_IN + "mlp.gate_up_proj.weight", _OUT + "ffn_up.weight", "gate_up hidden"),
    Row(_IN + "mlp.down_proj.weight", _OUT + "ffn_down.weight", "hidden ffn"),
    *OUTPUT_NORM,
    *OUTPUT,
)


@dataclass(frozen=True)
class _Window:
    """The number of tokens in a layer's window; 0 for no window, which is null in config.json."""

    sliding_window: Natural = 0


def phi3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Phi-3: LongRoPE over a part of each head, fused matrices.

    llama.cpp reads the window but ignores it (its pull request 13676), so that results differ from
    transformers for texts longer than the window.
    """
    # transformers' default.
    config = {"original_max_position_embeddings": 4096, **config}
    c = read_decoder(config, where)
    rope = read_rope(_long(config), where, ("longrope",), partial=1.0)
    ArchitectureError.raise_any(heads_fill_hidden(c, where))
    n_rotated = int(c.n_per_head * rope.partial_rotary_factor)
    keys = decoder_keys("phi3", c, rope, None) | {
        "phi3.rope.scaling.original_context_length": u32(rope.original_max_position_embeddings),
        "phi3.rope.dimension_count": u32(n_rotated),
        "phi3.attention.sliding_window": u32(read_config(_Window, config, where).sliding_window),
    }
    if rope.rope_type == "longrope":
        attention = longrope_attention(rope, c.max_position_embeddings)
        keys["phi3.rope.scaling.attn_factor"] = f32(attention)
    sizes = decoder_sizes(c)
    return Architecture(
        name="phi3",
        keys=keys,
        rows=_FUSED,
        sizes={**sizes, "qkv": sizes["q"] + 2 * sizes["kv"], "gate_up": 2 * sizes["ffn"]},
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        extra=longrope_tensors(rope, n_rotated, where),
        ignored=IGNORED,
        deviations=window_left_out(config, where),
    )


def _long(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return config.json with rope_type "longrope", for which the first Phi-3 had other names."""
    found = config.get("rope_scaling")
    if not isinstance(found, dict):
        return config
    scaling = cast("dict[str, Any]", found)
    name = scaling.get("rope_type", scaling.get("type"))
    return (
        {**config, "rope_scaling": {**scaling, "rope_type": "longrope"}}
        if name in ("su", "yarn")
        else config
    )


FAMILIES = {
    "Phi3ForCausalLM": Declared(
        phi3,
        Settings(
            read=DECODER | reads(_Window),
            only=constant(1, "full_attn_mod interpolate_factor") | constant(False, "lm_head_bias"),
        ),
    ),
}
GRAPHS = {
    "phi3": GGUFGraph("Phi3ForCausalLM", longrope=True),
}
