"""Gemma 4 (text): windows in most layers with heads of another size, norms stored as they are.

The small ones have an embedding for each layer, and their last layers have no keys and values of
their own. One has experts beside its feed-forward matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dynquant.arch.attention.head_sizes import HEADS, head_keys, head_rows, head_sizes, read_heads
from dynquant.arch.attention.windows import layer_types, window_keys
from dynquant.arch.base import Architecture, ModelTensor, Row
from dynquant.arch.config import Count, Natural, Positive, Truth, read_config, without_nulls
from dynquant.arch.decoder import (
    EMBEDDING,
    GELU,
    IGNORED,
    OUTPUT,
    OUTPUT_NORM,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.families.gemma import NORMS_AROUND
from dynquant.arch.gguf_files.graph import GATE_UP, QK, QKV, FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.mixtures.experts import routing_keys
from dynquant.arch.mixtures.side_experts import SIDE_EXPERTS, SideExperts, read_side_experts
from dynquant.arch.positions.rope import proportional_factors, read_rope, ropes_by_kind
from dynquant.arch.settings import DECODER, OF_POSITIONS, Declared, Settings, harmless, reads
from dynquant.arch.streams.per_layer import (
    IN_EACH_LAYER,
    PER_LAYER,
    mlp_rows,
    per_layer_keys,
    per_layer_sizes,
    shared_problems,
    unused_by_shared,
    width_keys,
)
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import f32
from dynquant.tensors import Computed

_SCALAR = Row("model.layers.{}.layer_scalar", "blk.{}.layer_output_scale.weight", "one")

_ROPES: dict[str, dict[str, Any]] = {
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1e6,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
# transformers' defaults.
_DEFAULTS = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "sliding_window": 512,
}
_UNIFIED = {"max_position_embeddings": 262144, "sliding_window": 1024}


@dataclass(frozen=True)
class _Gemma4:
    final_logit_softcapping: Positive | None = None
    use_bidirectional_attention: Literal["all", "vision"] | None = None
    vocab_size_per_layer_input: Count = 262144
    hidden_size_per_layer_input: Natural = 256
    attention_k_eq_v: Truth = False
    num_kv_shared_layers: Natural = 0
    use_double_wide_mlp: Truth = False
    enable_moe_block: Truth = False


def gemma4(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a Gemma 4."""
    present = without_nulls(config)
    config = {
        **_DEFAULTS,
        **present,
        "hidden_act": present.get("hidden_activation", GELU[0]),
        # null states that there are none.
        "hidden_size_per_layer_input": config.get("hidden_size_per_layer_input", 256) or 0,
    }
    c = read_decoder(config, where, activation=GELU)
    own = read_config(_Gemma4, config, where)
    n, n_shared, width = (
        c.num_hidden_layers,
        own.num_kv_shared_layers,
        own.hidden_size_per_layer_input,
    )
    # transformers gives the last layer no window, whatever config.json states.
    slides = (*layer_types(config, n, 6, where)[:-1], False)
    ArchitectureError.raise_any(
        [*_problems(c, own, where), *shared_problems(slides, n_shared, where)]
    )
    heads = read_heads(config, c, slides, where, global_kv=own.attention_k_eq_v)
    full, windowed = ropes_by_kind(config, where, _ROPES)
    rope = read_rope(full, where, known=("proportional",), partial=1.0)
    experts = read_side_experts(config, where) if own.enable_moe_block else None
    wide = range(n - n_shared, n) if own.use_double_wide_mlp else range(n, n)
    keys = {
        **decoder_keys("gemma4", c, rope, None),
        **width_keys("gemma4", c.intermediate_size, n, wide),
        "gemma4.rope.freq_base_swa": f32(read_rope(windowed, where, known=()).rope_theta),
        **head_keys("gemma4", heads, slides),
        **per_layer_keys("gemma4", width, n_shared),
        # Without the key llama.cpp caps at 30, with zero not at all.
        "gemma4.final_logit_softcapping": f32(own.final_logit_softcapping or 0.0),
        # llama.cpp has no default pattern: with the period 1 no layer has a window.
        **window_keys("gemma4", config, slides, 1, where),
        **(routing_keys("gemma4", experts.routing) if experts else {}),
    }
    return Architecture(
        name="gemma4",
        keys=keys,
        rows=(
            *EMBEDDING,
            *(PER_LAYER if width else ()),
            *NORMS_AROUND,
            _SCALAR,
            *head_rows(slides, n_shared, k_eq_v=own.attention_k_eq_v),
            *mlp_rows(wide.start, wide),
            *(SIDE_EXPERTS if experts else ()),
            *(IN_EACH_LAYER if width else ()),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            **head_sizes(heads, c),
            **per_layer_sizes(width, n),
            **(experts.sizes if experts else {}),
            "double": 2 * c.intermediate_size,
            "one": 1,
        },
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        extra=(
            ModelTensor(
                "rope_freqs.weight", Computed(proportional_factors(rope, heads.full.n_per_head))
            ),
        ),
        ignored=IGNORED | unused_by_shared(n, n_shared),
        n_experts=experts.num_experts if experts else 0,
    )


def _problems(c: Config, own: _Gemma4, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "is_causal": True}, where)
    if own.use_bidirectional_attention == "all":
        yield (
            f"{where}: use_bidirectional_attention is 'all'; llama.cpp computes the text of this"
            " family with causal attention"
        )
    if own.hidden_size_per_layer_input and own.vocab_size_per_layer_input != c.vocab_size:
        yield (
            f"{where}: vocab_size_per_layer_input is {own.vocab_size_per_layer_input}, but"
            f" llama.cpp needs the {c.vocab_size} tokens of vocab_size in that table too"
        )


def gemma4_unified(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a Gemma 4 without encoders: no embeddings for each layer."""
    without = {"hidden_size_per_layer_input": 0, "enable_moe_block": False}
    return gemma4({**_UNIFIED, **config, **without}, where)


_READ = (
    DECODER - {*OF_POSITIONS.split()}
    | HEADS
    | reads(_Gemma4)
    | {"hidden_activation", "sliding_window", "layer_types"}
)
_ROPE = harmless("rope_parameters states them for each kind of layers", OF_POSITIONS)
_GEMMA4 = Declared(gemma4, Settings(read=_READ | reads(SideExperts), harmless=_ROPE))
_GEMMA4_UNIFIED = Declared(
    gemma4_unified,
    Settings(read=_READ, harmless=_ROPE),
)
FAMILIES = {
    "Gemma4ForCausalLM": _GEMMA4,
    "Gemma4ForConditionalGeneration": Wrapped(_GEMMA4),
    "Gemma4UnifiedForCausalLM": _GEMMA4_UNIFIED,
    "Gemma4UnifiedForConditionalGeneration": Wrapped(_GEMMA4_UNIFIED),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return which layers of a GGUF have windows, keys and values, experts and embeddings."""
    kinds = keys.kinds("attention.sliding_window_pattern", "full_attention", "sliding_attention")
    return {
        "num_kv_shared_layers": keys.number("attention.shared_kv_layers") or 0,
        "hidden_size_per_layer_input": keys.number("embedding_length_per_layer_input") or 0,
        "enable_moe_block": bool(keys.number("expert_count")),
        "top_k_experts": 1,
        **({"layer_types": kinds} if kinds else {}),
    }


GRAPHS = {
    "gemma4": GGUFGraph(
        "Gemma4ForCausalLM",
        settings={
            "attention_k_eq_v": True,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": 64,
        },
        layers=_layers_of,
        fused=(QK, QKV, GATE_UP),
        computed=frozenset({"rope_freqs.weight"}),
    ),
}
