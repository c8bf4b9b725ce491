"""Gemma 4 without encoders: pixels and samples become embeddings by one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row, Via
from dynquant.arch.config import Count, Positive, read_config
from dynquant.arch.settings import Only, Settings, harmless, reads
from dynquant.arch.towers.gemma4 import (
    SIZE,
    audio_keys,
    by_colour,
    picture_problems,
    picture_warnings,
    with_means,
)
from dynquant.arch.towers.vision import Vision, vision_keys
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.arrays import I64
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Rows

_IN = "model.vision_embedder."
_MERGED = 3
"""Patches of a side that become one, unless a key says another number."""

_SAMPLES = 640
"""Samples of a token, 40 ms: llama.cpp's number."""

_NO_LAYERS: Keys = {
    "clip.vision.feed_forward_length": u32(0),
    "clip.vision.block_count": u32(0),
    "clip.vision.attention.head_count": u32(0),
}


@dataclass(frozen=True)
class _Sees:
    patch_size: Count = 16
    pooling_kernel_size: Count = 3
    mm_embed_dim: Count = 3840
    mm_posemb_size: Count = 1120
    rms_norm_eps: Positive = 1e-6


@dataclass(frozen=True)
class _Hears:
    audio_embed_dim: Count = _SAMPLES


def gemma4uv(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the embedding of pictures."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Sees, config, where)
    side = own.patch_size * own.pooling_kernel_size
    repeated = {"output_proj_dims": own.mm_embed_dim, "model_patch_size": side}
    ArchitectureError.raise_any(picture_problems(whole, own.patch_size, own.pooling_kernel_size))
    if any(config.get(name) not in (None, value) for name, value in repeated.items()):
        raise ArchitectureError(
            f"{where}: output_proj_dims must be mm_embed_dim, {own.mm_embed_dim}, and"
            f" model_patch_size must be patch_size times pooling_kernel_size, {side}"
        )
    v = Vision(
        hidden_size=own.mm_embed_dim,
        intermediate_size=4 * own.mm_embed_dim,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=SIZE,
        patch_size=own.patch_size,
        layer_norm_eps=own.rms_norm_eps,
    )
    merged: Keys = {"clip.vision.projector.scale_factor": u32(own.pooling_kernel_size)}
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, with_means(whole), "gemma4uv", of_several=True)
        | _NO_LAYERS
        | (merged if own.pooling_kernel_size != _MERGED else {}),
        rows=_ROWS,
        sizes={
            "hidden": own.mm_embed_dim,
            "patch": 3 * side**2,
            "positions": own.mm_posemb_size,
            "axes": 2,
            "text": whole.n_text,
        },
        n_layers=0,
        tied=None,
        deviations=tuple(picture_warnings(whole)),
    )


def gemma4ua(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the embedding of sounds."""
    where = f"{whole.where}: audio_config"
    own = read_config(_Hears, config, where)
    if own.audio_embed_dim != _SAMPLES:
        raise ArchitectureError(
            f"{where}: audio_embed_dim is {own.audio_embed_dim}; llama.cpp takes {_SAMPLES} samples"
            " for a token"
        )
    return Architecture(
        name=CLIP,
        keys=audio_keys(whole, "gemma4ua", width=_SAMPLES, ffn=0, layers=0, heads=0, mels=_SAMPLES),
        rows=(
            Row(
                "model.embed_audio.embedding_projection.weight",
                "mm.a.input_projection.weight",
                "text samples",
            ),
        ),
        sizes={"samples": _SAMPLES, "text": whole.n_text},
        n_layers=0,
        tied=None,
    )


def _by_axis(source: TensorSource) -> TensorSource:
    """Return a table for each axis from a table for each position."""
    n, axes, width = source.shape

    def order(row: I64) -> I64:
        return row % n * axes + row // n

    return Rows(source, (axes, n, width), order)


def _normed(stored: str, name: str, shape: str, via: Via | None = None) -> tuple[Row, Row]:
    return (
        Row(f"{_IN}{stored}.weight", f"{name}.weight", shape, via=via),
        Row(f"{_IN}{stored}.bias", f"{name}.bias", shape, via=via),
    )


_ROWS = (
    Row(_IN + "patch_dense.weight", "v.patch_embd.weight", "hidden patch", via=by_colour),
    Row(_IN + "patch_dense.bias", "v.patch_embd.bias", "hidden"),
    *_normed("patch_ln1", "v.patch_norm.1", "patch", by_colour),
    *_normed("patch_ln2", "v.patch_norm.2", "hidden"),
    Row(_IN + "pos_embedding", "v.position_embd.weight", "positions axes hidden", via=_by_axis),
    *_normed("pos_norm", "v.patch_norm.3", "hidden"),
    Row(
        "model.embed_vision.embedding_projection.weight",
        "mm.input_projection.weight",
        "text hidden",
    ),
)
_EPSILON = {
    "rms_norm_eps": Only((1e-6,), "llama.cpp computes the embedding of sounds with 1e-06"),
}
PROJECTORS = {
    "Gemma4UnifiedForConditionalGeneration": (
        Tower(
            gemma4uv,
            r"(vision_embedder|embed_vision)\.",
            Settings(read=reads(_Sees, more="output_proj_dims model_patch_size")),
        ),
        Tower(
            gemma4ua,
            r"embed_audio\.",
            Settings(
                read=reads(_Hears),
                harmless=harmless(
                    "other names of audio_embed_dim",
                    "hidden_size output_proj_dims audio_samples_per_token",
                ),
                only=_EPSILON,
            ),
            "audio_config",
            optional=True,
        ),
    ),
}
