"""Gemma 1, 2 and 3 (text): norms are stored minus one, and the activation is GELU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from typing import Any, cast

from dynquant.arch.attention.windows import layer_types, window_keys
from dynquant.arch.base import Architecture, Row, Via
from dynquant.arch.config import Count, Positive, Truth, read_config, without_nulls
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    GELU,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    TIED_ALWAYS,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, f32
from dynquant.tensors import TensorSource
from dynquant.transforms import plus_one, scaled

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
NORMS_AROUND = (
    Row(_LAYER + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_LAYER + "post_attention_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
    Row(_LAYER + "pre_feedforward_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
    Row(_LAYER + "post_feedforward_layernorm.weight", _OUT + "post_ffw_norm.weight", "hidden"),
)
"""Norms before and after attention and the feed-forward matrices."""

_BEFORE_AND_AFTER = (
    *EMBEDDING,
    *(row for row in ATTENTION if ".self_attn." in row.stored),
    *NORMS_AROUND,
    *MLP,
    *OUTPUT_NORM,
)
_NORMS: dict[str, Via] = dict.fromkeys(
    (
        "attn_norm",
        "attn_q_norm",
        "attn_k_norm",
        "post_attention_norm",
        "ffn_norm",
        "post_ffw_norm",
        "output_norm",
    ),
    plus_one,
)

# transformers' defaults; the config.json of the first Gemma 3 models states little but the sizes.
_COMMON = {"head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
_GEMMA2 = {**_COMMON, "sliding_window": 4096}
_GEMMA3 = {
    **_COMMON,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "vocab_size": 262208,
}


def complete(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with defaults, and the activation as `hidden_act`.

    The first Gemmas have `hidden_act` "gelu" and mean the tanh form that `hidden_activation` names.
    """
    present = without_nulls(config)
    act = present.get("hidden_activation", present.get("hidden_act", GELU[0]))
    return {**defaults, **present, "hidden_act": act}


def _read(config: Mapping[str, Any], where: str) -> Config:
    c = read_decoder(config, where, activation=(*GELU, "gelu"))
    if c.attention_bias:
        raise ArchitectureError(
            f"{where}: attention_bias is true; llama.cpp's Gemma has no bias on o_proj"
        )
    return c


def gemma(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Gemma: a Llama with GELU, in which the embedding is always the output matrix."""
    config = complete(config, _COMMON)
    c = _read(config, where)
    rope = read_rope(config, where, known=("linear", "dynamic"))
    return Architecture(
        name="gemma",
        keys=decoder_keys("gemma", c, rope, c.n_per_head),
        rows=EMBEDDING + ATTENTION + MLP + OUTPUT_NORM,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED,
        via=_NORMS,
        ignored=IGNORED,
    )


@dataclass(frozen=True)
class _Gemma2:
    query_pre_attn_scalar: Positive = 256.0
    attn_logit_softcapping: Positive = 50.0
    final_logit_softcapping: Positive = 30.0
    use_bidirectional_attention: Truth = False


def gemma2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Gemma 2: norms also after each block, soft caps, a window in every other layer."""
    ArchitectureError.raise_any(
        f"{where}: {cap} is null; llama.cpp's gemma2 always caps"
        for cap in ("attn_logit_softcapping", "final_logit_softcapping")
        if cap in config and config[cap] is None
    )
    config = complete(config, _GEMMA2)
    c = _read(config, where)
    own = read_config(_Gemma2, config, where)
    check_causal(own.use_bidirectional_attention, where)
    # All layers are rotated alike, so that one scaling applies to those with a window too.
    rope = read_rope(config, where, known=("linear", "dynamic"))
    caps = {
        "gemma2.attn_logit_softcapping": f32(own.attn_logit_softcapping),
        "gemma2.final_logit_softcapping": f32(own.final_logit_softcapping),
    }
    slides = layer_types(config, c.num_hidden_layers, 2, where)
    factor = _query_factor(c, own.query_pre_attn_scalar, 46)
    return Architecture(
        name="gemma2",
        keys=decoder_keys("gemma2", c, rope, c.n_per_head)
        | caps
        | window_keys("gemma2", config, slides, 2, where),
        rows=_BEFORE_AND_AFTER,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED,
        via=_NORMS | ({} if factor == 1 else {"attn_q": partial(scaled, factor=factor)}),
        ignored=IGNORED,
    )


@dataclass(frozen=True)
class _Gemma3:
    query_pre_attn_scalar: Positive = 256.0
    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None
    use_bidirectional_attention: Truth = False
    sliding_window_pattern: Count = 6


def gemma3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Gemma 3's text model: norms on Q and K, a second rope in layers with a window."""
    own = read_config(_Gemma3, config, where)
    check_causal(own.use_bidirectional_attention, where)
    return _gemma3("gemma3", config, where, n_layers_of_27b=62)


def gemma_embedding(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an EmbeddingGemma: a Gemma 3 in which every token attends to all others.

    Its window counts in both directions, half of `sliding_window` in each.
    """
    if not read_config(_Gemma3, config, where).use_bidirectional_attention:
        raise ArchitectureError(
            f"{where}: use_bidirectional_attention is not true; llama.cpp computes embedding models"
            " of Gemma 3 with attention to all tokens"
        )
    return _gemma3("gemma-embedding", config, where, n_layers_of_27b=0)


def _gemma3(name: str, config: Mapping[str, Any], where: str, n_layers_of_27b: int) -> Architecture:
    config = complete(config, _GEMMA3)
    c = _read(config, where)
    own = read_config(_Gemma3, config, where)
    if own.attn_logit_softcapping is not None:
        raise ArchitectureError(
            f"{where}: attn_logit_softcapping is {own.attn_logit_softcapping}; llama.cpp's gemma3"
            " does not cap attention"
        )
    full, windowed = ropes(config)
    rope = read_rope(full, where, known=("linear",))
    local = read_rope(windowed, where, known=())
    slides = layer_types(config, c.num_hidden_layers, own.sliding_window_pattern, where)
    keys: Keys = decoder_keys(name, c, rope, c.n_per_head)
    if own.final_logit_softcapping is not None:
        keys[f"{name}.final_logit_softcapping"] = f32(own.final_logit_softcapping)
    if any(slides):
        keys[f"{name}.rope.freq_base_swa"] = f32(local.rope_theta)
        keys |= window_keys(name, config, slides, 6, where)
    factor = _query_factor(c, own.query_pre_attn_scalar, n_layers_of_27b)
    via = _NORMS | ({} if factor == 1 else {"attn_q_norm": partial(_scaled_norm, factor=factor)})
    return Architecture(
        name=name,
        keys=keys,
        rows=_BEFORE_AND_AFTER + QK_NORMS + OUTPUT,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        via=via,
        ignored=IGNORED,
    )


def check_causal(use_bidirectional_attention: bool, where: str) -> None:
    """Raise ArchitectureError if tokens attend to later ones."""
    if use_bidirectional_attention:
        raise ArchitectureError(
            f"{where}: use_bidirectional_attention is true; llama.cpp computes this architecture"
            " with causal attention"
        )


def _query_factor(c: Config, scalar: float, n_layers_of_27b: int) -> float:
    """Return the factor of Q that corrects llama.cpp's divisor of the scores.

    The model divides by sqrt(query_pre_attn_scalar), llama.cpp by sqrt(head_dim), and for the 27B
    models, which it recognises by their number of layers, by sqrt(hidden_size / heads).
    """
    divisor = c.n_per_head
    if c.num_hidden_layers == n_layers_of_27b:
        divisor = c.hidden_size // c.num_attention_heads
    return sqrt(divisor / scalar)


def _scaled_norm(source: TensorSource, factor: float) -> TensorSource:
    return scaled(plus_one(source), factor)


def ropes(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json twice: with the rope of layers without a window, and of those with one.

    transformers 5 has both in rope_parameters. In older versions rope_theta and rope_scaling belong
    to the former and rope_local_base_freq to the latter.
    """
    found = config.get("rope_parameters")
    both = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    bare = {k: v for k, v in config.items() if k not in _ROPE}
    if "full_attention" in both or "sliding_attention" in both:
        full, windowed = both.get("full_attention"), both.get("sliding_attention")
        return (
            {**bare, "rope_theta": 1e6, "rope_parameters": full},
            {**bare, "rope_parameters": windowed},
        )
    stated = {k: config[k] for k in _ROPE if config.get(k) is not None}
    return (
        {**bare, "rope_theta": 1e6, **stated},
        {**bare, "rope_theta": stated.get("rope_local_base_freq", 10000.0)},
    )


_ROPE = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")

_READ = DECODER | {"hidden_activation"}
_WINDOWS = {"sliding_window", "layer_types"}
_GEMMA3_SETTINGS = Settings(
    read=_READ | _WINDOWS | reads(_Gemma3, more="rope_local_base_freq"),
    harmless=harmless("layer_types states it", "_sliding_window_pattern"),
)
_GEMMA3_FAMILY = Declared(gemma3, _GEMMA3_SETTINGS)
FAMILIES = {
    "GemmaForCausalLM": Declared(
        gemma,
        Settings(
            read=_READ,
            harmless=NO_WINDOW,
            only=TIED_ALWAYS | constant(False, "use_bidirectional_attention"),
        ),
    ),
    "Gemma2ForCausalLM": Declared(
        gemma2,
        Settings(
            read=_READ | _WINDOWS | reads(_Gemma2),
            harmless=harmless("repeats sliding_window", "sliding_window_size"),
            only=TIED_ALWAYS,
        ),
    ),
    "Gemma3ForCausalLM": _GEMMA3_FAMILY,
    "Gemma3TextModel": Declared(gemma_embedding, replace(_GEMMA3_SETTINGS, only=TIED_ALWAYS)),
    "Gemma3ForConditionalGeneration": Wrapped(_GEMMA3_FAMILY),
}
GRAPHS = {
    "gemma": GGUFGraph("GemmaForCausalLM"),
    "gemma-embedding": GGUFGraph("Gemma3TextModel", settings={"use_bidirectional_attention": True}),
    "gemma2": GGUFGraph("Gemma2ForCausalLM"),
    "gemma3": GGUFGraph("Gemma3ForCausalLM"),
}
