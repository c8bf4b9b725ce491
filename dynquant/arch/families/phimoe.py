"""PhiMoE (Phi-3.5-MoE); llama.cpp's graph differs from the model's own code, see `phimoe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from dynquant.arch.attention.windows import window_left_out
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, ExpertsCount, Natural, Positive, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    O_BIAS,
    OUTPUT,
    OUTPUT_NORM,
    QKV_BIASES,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, heads_fill_hidden, output_apart
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    with_expert_count,
)
from dynquant.arch.positions.longrope import longrope_attention, longrope_tensors
from dynquant.arch.positions.rope import Rope, read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, u32

_IN, _OUT = "model.layers.{}.", "blk.{}."
_BLOCK = _IN + "block_sparse_moe."
_BIASES = (
    Row(_IN + "input_layernorm.bias", _OUT + "attn_norm.bias", "hidden"),
    *QKV_BIASES,
    *O_BIAS,
    Row(_IN + "post_attention_layernorm.bias", _OUT + "ffn_norm.bias", "hidden"),
    Row("model.norm.bias", "output_norm.bias", "hidden"),
    Row("lm_head.bias", "output.bias", "vocab"),
)


@dataclass(frozen=True)
class _Settings:
    num_experts: ExpertsCount
    num_experts_per_tok: Count = 2
    sliding_window: Natural = 0
    attention_bias: Truth = False
    lm_head_bias: Truth = False


@dataclass(frozen=True)
class _Magnitudes:
    short_mscale: Positive | None = None
    long_mscale: Positive | None = None


def phimoe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a PhiMoE: a Phi-3 with separate matrices, biases and experts.

    llama.cpp's norms do not subtract the mean, and it normalizes the weights of the two chosen
    experts to a sum of one, whereas the model gives each a weight of about one (SparseMixer).
    """
    config = {"rope_theta": 1e6, **config}  # transformers' default
    c = read_decoder(config, where)
    rope = read_rope(config, where, ("longrope",))
    settings = read_config(_Settings, with_expert_count(config), where)
    biased = {"attention_bias": True, "lm_head_bias": True}
    ArchitectureError.raise_any(
        chain(
            fixed(settings, biased, where),
            heads_fill_hidden(c, where),
            output_apart(c, where),
        )
    )
    keys = decoder_keys("phimoe", c, rope, None) | {
        "phimoe.rope.scaling.original_context_length": u32(rope.original_max_position_embeddings),
        "phimoe.rope.dimension_count": u32(c.n_per_head),
        "phimoe.attention.sliding_window": u32(settings.sliding_window),
    }
    if rope.rope_type == "longrope":
        magnitude = _magnitude(config, rope, c.max_position_embeddings, where)
        keys["phimoe.rope.scaling.attn_factor"] = f32(magnitude)
    sizes = decoder_sizes(c)
    return Architecture(
        name="phimoe",
        keys=keys
        | routing_keys("phimoe", Routing(settings.num_experts, settings.num_experts_per_tok)),
        rows=(
            *EMBEDDING,
            *ATTENTION,
            router_row(_BLOCK + "gate.weight", _IN + "mlp.router.weight"),
            *expert_rows(_BLOCK, gate="w1", up="w3", down="w2"),
            *OUTPUT_NORM,
            *OUTPUT,
            *_BIASES,
        ),
        sizes={**sizes, "experts": settings.num_experts, "expert_ffn": c.intermediate_size},
        n_layers=c.num_hidden_layers,
        tied=None,
        extra=longrope_tensors(rope, c.n_per_head, where),
        ignored=IGNORED,
        n_experts=settings.num_experts,
        deviations=(
            f"{where}: llama.cpp computes PhiMoE differently from the model's own code: norms do"
            " not subtract the mean, and the weights of the chosen experts sum to one",
            *window_left_out(config, where),
        ),
    )


def _magnitude(config: Mapping[str, Any], rope: Rope, n_context: int, where: str) -> float:
    """Return the factor of sines and cosines, which config.json may state."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    m = read_config(_Magnitudes, cast("dict[str, Any]", config[name]), f"{where}: {name}")
    if m.short_mscale != m.long_mscale:
        raise ArchitectureError(
            f"{where}: {name}: short_mscale {m.short_mscale} differs from long_mscale"
            f" {m.long_mscale}; llama.cpp has one magnitude for both"
        )
    return m.long_mscale or longrope_attention(rope, n_context)


_PHIMOE = Declared(
    phimoe,
    Settings(
        read=DECODER | reads(_Settings, more="num_local_experts"),
        of_rope=reads(_Magnitudes),
    ),
)
FAMILIES = {
    "PhiMoEForCausalLM": _PHIMOE,
    "PhimoeForCausalLM": _PHIMOE,
}
GRAPHS = {
    "phimoe": GGUFGraph(
        "PhimoeForCausalLM", settings={"attention_bias": True, "lm_head_bias": True}, longrope=True
    ),
}
