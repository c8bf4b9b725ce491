"""The vision encoders of Qwen2-VL, 2.5-VL, 3-VL and 3.5: patches of two frames, merged 2 x 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Natural, read_config
from dynquant.arch.settings import Settings, harmless, reads
from dynquant.arch.towers.limits import pixel_limits
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.rotary import rotary_problems
from dynquant.arch.towers.vision import (
    OUT,
    Vision,
    activation_keys,
    biased,
    first_and_second_frame,
    fused,
    vision_keys,
)
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, booleans, u32
from dynquant.untrusted import shown

_IN = "model.visual."
_LAYER = _IN + "blocks.{}."
_PATCH = "hidden colours frames patch patch"
_FEWEST, _MOST = 8, 4096
"""llama.cpp's limits on the tokens of a picture, unless the file has others."""

_SIZE = 560
"""Pixels of a side, which llama.cpp needs for a trial run only: positions are rotations."""


@dataclass(frozen=True)
class _Qwen:
    depth: LayersCount = 32
    num_heads: Count = 16
    patch_size: Count = 14
    in_channels: Count = 3
    spatial_merge_size: Count = 2
    temporal_patch_size: Count = 2


@dataclass(frozen=True)
class _Qwen2:
    embed_dim: Count = 1280
    hidden_size: Count = 3584
    mlp_ratio: Count = 4
    hidden_act: str = "quick_gelu"


@dataclass(frozen=True)
class _Qwen25:
    hidden_size: Count = 3584
    intermediate_size: Count = 3420
    out_hidden_size: Count = 3584
    window_size: Count = 112
    fullatt_block_indexes: tuple[Natural, ...] = (7, 15, 23, 31)
    hidden_act: str = "silu"


@dataclass(frozen=True)
class _Qwen3:
    hidden_size: Count = 1152
    intermediate_size: Count = 4304
    out_hidden_size: Count = 3584
    num_position_embeddings: Count = 2304
    deepstack_visual_indexes: tuple[Natural, ...] = (8, 16, 24)
    hidden_act: str = "gelu_pytorch_tanh"


def _usual(own: _Qwen, hidden: int, ffn: int, activation: str, size: int) -> Vision:
    """Return the settings under their usual names; the model's own code has one epsilon."""
    return Vision(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=own.depth,
        num_attention_heads=own.num_heads,
        image_size=size,
        patch_size=own.patch_size,
        layer_norm_eps=1e-6,
        hidden_act=activation,
    )


def _sizes(own: _Qwen, v: Vision, whole: Whole) -> dict[str, int]:
    return {
        "hidden": v.hidden_size,
        "three": 3 * v.hidden_size,
        "merged": own.spatial_merge_size**2 * v.hidden_size,
        "ffn": v.intermediate_size,
        "colours": own.in_channels,
        "frames": own.temporal_patch_size,
        "patch": own.patch_size,
        "text": whole.n_text,
    }


def _limits(own: _Qwen, whole: Whole) -> tuple[Keys, tuple[str, ...]]:
    area = (own.patch_size * own.spatial_merge_size) ** 2
    return pixel_limits(whole, area, _FEWEST, _MOST)


def _problems(
    own: _Qwen, hidden_size: int, config: Mapping[str, Any], whole: Whole, where: str
) -> Iterator[str]:
    yield from rotary_problems(config, hidden_size // own.num_heads, where)
    yield from contradictions(
        whole,
        patch_size=own.patch_size,
        merge_size=own.spatial_merge_size,
        temporal_patch_size=own.temporal_patch_size,
    )
    if own.temporal_patch_size != 2:
        yield f"{where}: temporal_patch_size is {own.temporal_patch_size}; llama.cpp computes 2"
    if own.spatial_merge_size != 2:
        yield f"{where}: spatial_merge_size is {own.spatial_merge_size}; llama.cpp computes 2"
    if own.in_channels != 3:
        yield f"{where}: in_channels is {own.in_channels}; llama.cpp computes 3"


_NORMS_2 = (
    *biased(_LAYER + "norm1", OUT + "ln1", "hidden"),
    *biased(_LAYER + "norm2", OUT + "ln2", "hidden"),
)
_MERGER_2 = (
    *biased(_IN + "merger.mlp.0", "mm.0", "merged merged"),
    *biased(_IN + "merger.mlp.2", "mm.2", "text merged"),
)


def _qkv(v: Vision) -> tuple[Row, ...]:
    n = v.hidden_size
    parts = {"attn_q": n, "attn_k": n, "attn_v": n}
    return fused(_LAYER + "attn.qkv", OUT, "three hidden", parts)


def qwen2vl(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Qwen2-VL, whose norms subtract the mean."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Qwen, config, where)
    its = read_config(_Qwen2, config, where)
    ArchitectureError.raise_any(_problems(own, its.embed_dim, config, whole, where))
    limits, warnings = _limits(own, whole)
    v = _usual(own, its.embed_dim, its.mlp_ratio * its.embed_dim, its.hidden_act, _SIZE)
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "qwen2vl_merger")
        | activation_keys(its.hidden_act, where)
        | limits,
        rows=(
            *first_and_second_frame(_IN + "patch_embed.proj.weight", _PATCH),
            *_NORMS_2,
            *_qkv(v),
            *biased(_LAYER + "attn.proj", OUT + "attn_out", "hidden hidden"),
            *biased(_LAYER + "mlp.fc1", OUT + "ffn_up", "ffn hidden"),
            *biased(_LAYER + "mlp.fc2", OUT + "ffn_down", "hidden ffn"),
            *biased(_IN + "merger.ln_q", "v.post_ln", "hidden"),
            *_MERGER_2,
        ),
        sizes=_sizes(own, v, whole),
        n_layers=own.depth,
        tied=None,
        deviations=warnings,
    )


def qwen25vl(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Qwen2.5-VL: windows, gates and RMS norms."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Qwen, config, where)
    its = read_config(_Qwen25, config, where)
    full = its.fullatt_block_indexes
    every = full[0] + 1 if full else 0
    ArchitectureError.raise_any(_problems(own, its.hidden_size, config, whole, where))
    limits, warnings = _limits(own, whole)
    if list(full) != list(range(every - 1, own.depth, max(every, 1))):
        raise ArchitectureError(
            f"{where}: fullatt_block_indexes is {shown(list(full))}; llama.cpp computes layers"
            " without a window at equal distances, beginning with the first distance"
        )
    if its.window_size != 112:
        raise ArchitectureError(
            f"{where}: window_size is {its.window_size}; llama.cpp computes 112"
        )
    v = _usual(own, its.hidden_size, its.intermediate_size, its.hidden_act, _SIZE)
    mlp = _LAYER + "mlp."
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "qwen2.5vl_merger")
        | activation_keys(its.hidden_act, where)
        | {"clip.vision.n_wa_pattern": u32(every)}
        | limits,
        rows=(
            *first_and_second_frame(_IN + "patch_embed.proj.weight", _PATCH),
            Row(_LAYER + "norm1.weight", OUT + "ln1.weight", "hidden"),
            Row(_LAYER + "norm2.weight", OUT + "ln2.weight", "hidden"),
            *_qkv(v),
            *biased(_LAYER + "attn.proj", OUT + "attn_out", "hidden hidden"),
            *biased(mlp + "gate_proj", OUT + "ffn_gate", "ffn hidden"),
            *biased(mlp + "up_proj", OUT + "ffn_up", "ffn hidden"),
            *biased(mlp + "down_proj", OUT + "ffn_down", "hidden ffn"),
            Row(_IN + "merger.ln_q.weight", "v.post_ln.weight", "hidden"),
            *_MERGER_2,
        ),
        sizes=_sizes(own, v, whole),
        n_layers=own.depth,
        tied=None,
        deviations=warnings,
    )


def qwen3vl(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Qwen3-VL or Qwen3.5: learned positions, and deepstack."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Qwen, {"depth": 27, "patch_size": 16, **config}, where)
    its = read_config(_Qwen3, config, where)
    side = isqrt(its.num_position_embeddings)
    ArchitectureError.raise_any(_problems(own, its.hidden_size, config, whole, where))
    limits, warnings = _limits(own, whole)
    deep = its.deepstack_visual_indexes
    if side * side != its.num_position_embeddings:
        raise ArchitectureError(
            f"{where}: num_position_embeddings is {its.num_position_embeddings}, which is no square"
        )
    if len(set(deep)) < len(deep):
        raise ArchitectureError(
            f"{where}: deepstack_visual_indexes is {shown(list(deep))}; each layer may be there"
            " once"
        )
    if wrong := [n for n in deep if n >= own.depth]:
        raise ArchitectureError(
            f"{where}: deepstack_visual_indexes has {wrong[0]}, and the encoder has {own.depth}"
            " layers"
        )
    size = side * own.patch_size
    v = _usual(own, its.hidden_size, its.intermediate_size, its.hidden_act, size)
    merger = _IN + "merger."
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "qwen3vl_merger")
        | activation_keys(its.hidden_act, where)
        | {
            "clip.vision.spatial_merge_size": u32(own.spatial_merge_size),
            "clip.vision.is_deepstack_layers": booleans([n in deep for n in range(own.depth)]),
        }
        | limits,
        rows=(
            *first_and_second_frame(_IN + "patch_embed.proj.weight", _PATCH),
            Row(_IN + "patch_embed.proj.bias", "v.patch_embd.bias", "hidden"),
            Row(_IN + "pos_embed.weight", "v.position_embd.weight", "positions hidden"),
            *_NORMS_2,
            *biased(_LAYER + "attn.qkv", OUT + "attn_qkv", "three hidden"),
            *biased(_LAYER + "attn.proj", OUT + "attn_out", "hidden hidden"),
            *biased(_LAYER + "mlp.linear_fc1", OUT + "ffn_up", "ffn hidden"),
            *biased(_LAYER + "mlp.linear_fc2", OUT + "ffn_down", "hidden ffn"),
            *biased(merger + "norm", "v.post_ln", "hidden"),
            *biased(merger + "linear_fc1", "mm.0", "merged merged"),
            *biased(merger + "linear_fc2", "mm.2", "text merged"),
            *(row for i, layer in enumerate(deep) for row in _deepstack(i, layer)),
        ),
        sizes=_sizes(own, v, whole) | {"positions": its.num_position_embeddings},
        n_layers=own.depth,
        tied=None,
        deviations=warnings,
    )


def deepstack_layers(config: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Return the layers whose features join deeper layers of the language model."""
    return read_config(_Qwen3, config, where).deepstack_visual_indexes


def _deepstack(number: int, layer: int) -> tuple[Row, ...]:
    """Return the rows of what joins a layer of the encoder to one of the language model."""
    stored, name = f"{_IN}deepstack_merger_list.{number}.", f"v.deepstack.{layer}."
    return (
        *biased(stored + "norm", name + "norm", "merged"),
        *biased(stored + "linear_fc1", name + "fc1", "merged merged"),
        *biased(stored + "linear_fc2", name + "fc2", "text merged"),
    )


WITHIN = r"visual\."
"""Beginnings of the names of all tensors."""

_TRAINED = harmless(
    "used while training, or only for videos", "tokens_per_second initializer_range"
)
_OUT = harmless("the width of the language model, which is read there", "out_hidden_size")
_CHANNELS = harmless("in_channels states it", "in_chans spatial_patch_size")


def _settings(*forms: type) -> Settings:
    read = reads(_Qwen, *forms, more="rope_theta")
    return Settings(read=read, harmless=_TRAINED | _OUT | _CHANNELS)


SETTINGS25, SETTINGS3 = _settings(_Qwen25), _settings(_Qwen3)
_QWEN2VL = (Tower(qwen2vl, WITHIN, _settings(_Qwen2)),)
_QWEN25VL = (Tower(qwen25vl, WITHIN, SETTINGS25),)
_QWEN3VL = (Tower(qwen3vl, WITHIN, SETTINGS3),)
PROJECTORS = {
    "Qwen2VLForConditionalGeneration": _QWEN2VL,
    "Qwen2_5_VLForConditionalGeneration": _QWEN25VL,
    "Qwen3VLForConditionalGeneration": _QWEN3VL,
    "Qwen3VLMoeForConditionalGeneration": _QWEN3VL,
    "Qwen3_5ForConditionalGeneration": _QWEN3VL,
    "Qwen3_5MoeForConditionalGeneration": _QWEN3VL,
}
