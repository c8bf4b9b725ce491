"""The vision encoders of GLM-4.1V to 4.6V, GLM-OCR and GLM-5.3: patches of two frames, gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Positive, Truth, read_config
from dynquant.arch.settings import Settings, constant, harmless, reads
from dynquant.arch.towers.limits import pixels, reduced
from dynquant.arch.towers.rotary import rotary_problems
from dynquant.arch.towers.vision import (
    OUT,
    Vision,
    activation_keys,
    biased,
    erf_warning,
    first_and_second_frame,
    vision_keys,
)
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, u32

_IN = "model.visual."
_LAYER = _IN + "blocks.{}."
_FRAMES, _SIDE = 2, 2
"""Frames of a patch, and patches of a side that become one token."""

_MOST_TOKENS = 4096
"""llama.cpp's limit of tokens for a picture, but for GLM-5.3."""


@dataclass(frozen=True)
class _Glm:
    """Settings of the encoder, with the defaults of GLM-4.1V's class."""

    depth: LayersCount = 24
    hidden_size: Count = 1536
    num_heads: Count = 12
    intermediate_size: Count = 13696
    out_hidden_size: Count = 4096
    image_size: Count = 336
    patch_size: Count = 14
    rms_norm_eps: Positive = 1e-5
    hidden_act: str = "silu"
    attention_bias: Truth = False


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
    Row(_IN + "post_conv_layernorm.weight", "v.norm_embd.weight", "hidden"),
    Row(_IN + "embeddings.position_embedding.weight", "v.position_embd.weight", "positions hidden"),
)
_HEAD_NORMS = (
    Row(_LAYER + "attn.q_norm.weight", OUT + "attn_q_norm.weight", "head"),
    Row(_LAYER + "attn.k_norm.weight", OUT + "attn_k_norm.weight", "head"),
)


def _matrix(stored: str, name: str, shape: str, *, has_bias: bool) -> tuple[Row, ...]:
    rows = biased(stored, name, shape)
    return rows if has_bias else rows[:1]


def _layer(*, has_bias: bool, biased_everywhere: bool) -> tuple[Row, ...]:
    """Return the rows of a layer without norms of heads.

    has_bias: whether queries, keys and values have biases; biased_everywhere: and all others
    """
    attn, mlp, all_have = _LAYER + "attn.", _LAYER + "mlp.", has_bias and biased_everywhere
    return (
        Row(_LAYER + "norm1.weight", OUT + "ln1.weight", "hidden"),
        *_matrix(attn + "qkv", OUT + "attn_qkv", "three hidden", has_bias=has_bias),
        *_matrix(attn + "proj", OUT + "attn_out", "hidden hidden", has_bias=all_have),
        Row(_LAYER + "norm2.weight", OUT + "ln2.weight", "hidden"),
        *_matrix(mlp + "gate_proj", OUT + "ffn_gate", "ffn hidden", has_bias=all_have),
        *_matrix(mlp + "up_proj", OUT + "ffn_up", "ffn hidden", has_bias=all_have),
        *_matrix(mlp + "down_proj", OUT + "ffn_down", "hidden ffn", has_bias=all_have),
    )


_MERGER = (
    Row(_IN + "post_layernorm.weight", "v.post_ln.weight", "hidden"),
    *biased(_IN + "downsample", "mm.patch_merger", "text hidden merged merged"),
    Row(_IN + "merger.proj.weight", "mm.model.fc.weight", "text text"),
    *biased(_IN + "merger.post_projection_norm", "mm.post_norm", "text"),
    Row(_IN + "merger.gate_proj.weight", "mm.gate.weight", "context text"),
    Row(_IN + "merger.up_proj.weight", "mm.up.weight", "context text"),
    Row(_IN + "merger.down_proj.weight", "mm.down.weight", "text context"),
)


def _problems(own: _Glm, config: Mapping[str, Any], whole: Whole, where: str) -> Iterator[str]:
    yield from rotary_problems(config, own.hidden_size // own.num_heads, where)
    if own.out_hidden_size != whole.n_text:
        yield (
            f"{where}: out_hidden_size is {own.out_hidden_size}, and the language model has"
            f" hidden_size {whole.n_text}; take both from one model"
        )


def _whole(config: Mapping[str, Any], whole: Whole, kind: str) -> tuple[Architecture, _Glm]:
    """Describe the encoder without its layers; `ffn` and `context` are the caller's."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Glm, config, where)
    ArchitectureError.raise_any(_problems(own, config, whole, where))
    v = Vision(
        own.hidden_size,
        own.intermediate_size,
        own.depth,
        own.num_heads,
        own.image_size,
        own.patch_size,
        own.rms_norm_eps,
        own.hidden_act,
    )
    found = Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, kind) | activation_keys(own.hidden_act, where),
        rows=(
            *first_and_second_frame(
                _IN + "patch_embed.proj.weight", "hidden colours frames patch patch"
            ),
            Row(_IN + "patch_embed.proj.bias", "v.patch_embd.bias", "hidden"),
        ),
        sizes={
            "hidden": own.hidden_size,
            "three": 3 * own.hidden_size,
            "head": own.hidden_size // own.num_heads,
            "colours": 3,
            "frames": _FRAMES,
            "patch": own.patch_size,
            "positions": (own.image_size // own.patch_size) ** 2,
            "merged": _SIDE,
            "text": own.out_hidden_size,
        },
        n_layers=own.depth,
        tied=None,
        ignored={r".*\.position_ids": "numbers from zero on, which need no tensor"},
        deviations=erf_warning(own.hidden_act, where),
    )
    return found, own


def _limited(whole: Whole, own: _Glm) -> tuple[str, ...]:
    """Return a warning if the image processor permits more tokens than llama.cpp."""
    size: object = whole.images.get("size")
    edge = cast("dict[str, object]", size).get("longest_edge") if isinstance(size, dict) else None
    each = _FRAMES * (_SIDE * own.patch_size) ** 2
    most = edge // each if isinstance(edge, int) else 0
    where = f"{whole.folder}: settings of the image processor: longest_edge {edge}"
    return reduced(most, _MOST_TOKENS, where)


def glm4v(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a GLM-4.1V, 4.5V or 4.6V.

    Its layers are as wide as its output, and `intermediate_size` is the width of the projector.
    """
    found, own = _whole(config, whole, "glm4v")
    layer = _layer(has_bias=own.attention_bias, biased_everywhere=False)
    sizes = {"ffn": own.out_hidden_size, "context": own.intermediate_size}
    return replace(
        found,
        rows=(*found.rows, *_BEFORE, *layer, *_MERGER),
        sizes={**found.sizes, **sizes},
        deviations=(*found.deviations, *_limited(whole, own)),
    )


def _normed(found: Architecture, own: _Glm, context: int) -> Architecture:
    """Add layers with norms of queries and keys, without learned positions.

    context: width of the projector
    """
    layer = _layer(has_bias=own.attention_bias, biased_everywhere=True)
    return replace(
        found,
        rows=(*found.rows, *layer, *_HEAD_NORMS, *_MERGER),
        sizes={**found.sizes, "ffn": own.intermediate_size, "context": context},
    )


def glm_ocr(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a GLM-OCR."""
    found, own = _whole({**_OCR, **config}, whole, "glm4v")
    normed = _normed(found, own, context=3 * own.out_hidden_size)
    return replace(normed, deviations=(*normed.deviations, *_limited(whole, own)))


def glm5next(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a GLM-5.3: a GLM-OCR's, whose gates are limited."""
    found, own = _whole({**_OCR, **config}, whole, "glm5v")
    its = read_config(_Glm5, config, f"{whole.where}: vision_config")
    images = f"{whole.folder}: settings of the image processor"
    tokens = read_config(_Tokens, whole.images, images)
    area = (_SIDE * own.patch_size) ** 2
    return replace(
        _normed(found, own, context=its.projection_intermediate_size),
        keys=found.keys
        | {
            "clip.vision.spatial_merge_size": u32(_SIDE),
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
    constant(_FRAMES, "temporal_patch_size")
    | constant(_SIDE, "spatial_merge_size")
    | constant(3, "in_channels")
)
_SETTINGS = Settings(read=reads(_Glm, more="rope_theta"), harmless=_TRAINED, only=_ONLY)
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
