"""The vision encoders of GLM-4.1V to 4.6V, GLM-OCR and GLM-5.3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Positive, read_config, without_nulls
from dynquant.arch.settings import Settings, constant, harmless, reads
from dynquant.arch.towers.glm import FRAMES, IN, LAYER, MERGER, SIDE, Glm, encoder, layer_rows
from dynquant.arch.towers.limits import other_limit, pixels
from dynquant.arch.towers.processor import edges
from dynquant.arch.towers.vision import OUT
from dynquant.arch.towers.whole import Tower, Whole
from dynquant.keys import f32, u32

_MOST_TOKENS = 4096
"""llama.cpp's limit of tokens for a picture, but for GLM-5.3."""


@dataclass(frozen=True)
class _Glm5:
    """Further settings of GLM-5.3's encoder."""

    projection_intermediate_size: Count = 10240
    swiglu_limit: Positive = 10.0


@dataclass(frozen=True)
class _Tokens:
    """The numbers of tokens that GLM-5.3's image processor permits."""

    min_image_tokens: Count = 16
    max_image_tokens: Count = 8000


_OCR = {
    "hidden_size": 1024,
    "num_heads": 16,
    "intermediate_size": 4096,
    "out_hidden_size": 1536,
    "attention_bias": True,
}
"""Defaults of the classes of GLM-OCR and GLM-5.3, where they differ."""

_BEFORE = (
    Row(IN + "post_conv_layernorm.weight", "v.norm_embd.weight", "hidden"),
    Row(IN + "embeddings.position_embedding.weight", "v.position_embd.weight", "positions hidden"),
)
_HEAD_NORMS = (
    Row(LAYER + "attn.q_norm.weight", OUT + "attn_q_norm.weight", "head"),
    Row(LAYER + "attn.k_norm.weight", OUT + "attn_k_norm.weight", "head"),
)


def _limited(whole: Whole, own: Glm) -> tuple[str, ...]:
    """Return a warning if the image processor has another limit than llama.cpp."""
    area = edges(whole).longest_edge
    if area is None:
        return ()
    most = area // (FRAMES * (SIDE * own.patch_size) ** 2)
    where = f"{whole.processor}: longest_edge {area}"
    return other_limit(most, _MOST_TOKENS, where)


def glm4v(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a GLM-4.1V, 4.5V or 4.6V.

    Its layers are as wide as its output, and `intermediate_size` is the width of the projector.
    """
    found, own = encoder(config, whole, "glm4v")
    layer = layer_rows(has_bias=own.attention_bias, biased_everywhere=False)
    sizes = {"ffn": own.out_hidden_size, "context": own.intermediate_size}
    return replace(
        found,
        rows=(*found.rows, *_BEFORE, *layer, *MERGER),
        sizes={**found.sizes, **sizes},
        deviations=(*found.deviations, *_limited(whole, own)),
    )


def _normed(found: Architecture, own: Glm, context: int) -> Architecture:
    """Add layers with norms of queries and keys, without learned positions.

    context: width of the projector
    """
    layer = layer_rows(has_bias=own.attention_bias, biased_everywhere=True)
    return replace(
        found,
        rows=(*found.rows, *layer, *_HEAD_NORMS, *MERGER),
        sizes={**found.sizes, "ffn": own.intermediate_size, "context": context},
    )


def glm_ocr(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a GLM-OCR."""
    found, own = encoder({**_OCR, **without_nulls(config)}, whole, "glm4v")
    normed = _normed(found, own, context=3 * own.out_hidden_size)
    return replace(normed, deviations=(*normed.deviations, *_limited(whole, own)))


def glm5next(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a GLM-5.3: a GLM-OCR's, whose gates are limited."""
    found, own = encoder({**_OCR, **without_nulls(config)}, whole, "glm5v")
    its = read_config(_Glm5, config, f"{whole.where}: vision_config")
    images = whole.processor
    tokens = read_config(_Tokens, whole.images, images)
    area = (SIDE * own.patch_size) ** 2
    return replace(
        _normed(found, own, context=its.projection_intermediate_size),
        keys=found.keys
        | {
            "clip.vision.spatial_merge_size": u32(SIDE),
            "clip.vision.swiglu_clamp": f32(its.swiglu_limit),
            "clip.vision.image_min_pixels": pixels(
                tokens.min_image_tokens, area, f"{images}: min_image_tokens"
            ),
            "clip.vision.image_max_pixels": pixels(
                tokens.max_image_tokens, area, f"{images}: max_image_tokens"
            ),
        },
    )


_TRAINED = harmless("used while training only", "initializer_range")
_ONLY = (
    constant(FRAMES, "temporal_patch_size")
    | constant(SIDE, "spatial_merge_size")
    | constant(3, "in_channels")
)
_SETTINGS = Settings(read=reads(Glm, more="rope_theta"), harmless=_TRAINED, only=_ONLY)
_SETTINGS_5 = replace(_SETTINGS, read=_SETTINGS.read | reads(_Glm5))
_WITHIN = r"visual\."
_GLM4V = (Tower(glm4v, _WITHIN, _SETTINGS),)
PROJECTORS = {
    "Glm4vForConditionalGeneration": _GLM4V,
    "Glm46VForConditionalGeneration": _GLM4V,
    "Glm4vMoeForConditionalGeneration": _GLM4V,
    "GlmOcrForConditionalGeneration": (Tower(glm_ocr, _WITHIN, _SETTINGS),),
    "Glm5NextForConditionalGeneration": (Tower(glm5next, _WITHIN, _SETTINGS_5),),
}
