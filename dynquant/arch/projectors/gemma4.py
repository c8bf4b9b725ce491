"""Gemma 4's encoders: one of pictures, whose patches are pooled, and a conformer of sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Positive, Truth, read_config
from dynquant.arch.settings import Settings, constant, harmless, reads
from dynquant.arch.towers import gemma4_audio
from dynquant.arch.towers.gemma4 import (
    SIZE,
    clippable,
    patches,
    picture_problems,
    picture_warnings,
    with_means,
)
from dynquant.arch.towers.rotary import rotary_problems
from dynquant.arch.towers.vision import OUT, Vision, activation_keys, vision_keys
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32

_SEES = "model.vision_tower."
_LAYER = _SEES + "encoder.layers.{}."
_POOLED = 3
"""Patches of a side that become one, unless a key says another number."""

_THETA = 100


@dataclass(frozen=True)
class _Sees:
    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: LayersCount = 16
    num_attention_heads: Count = 12
    num_key_value_heads: Count = 12
    head_dim: Count = 64
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: Positive = 1e-6
    pooling_kernel_size: Count = 3
    patch_size: Count = 16
    position_embedding_size: Count = 10240
    use_clipped_linears: Truth = False
    standardize: Truth = False


def gemma4v(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Gemma 4."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Sees, config, where)
    ArchitectureError.raise_any([*_seen(own, config, where), *_pictures(own, whole)])
    v = Vision(
        hidden_size=own.hidden_size,
        intermediate_size=own.intermediate_size,
        num_hidden_layers=own.num_hidden_layers,
        num_attention_heads=own.num_attention_heads,
        image_size=SIZE,
        patch_size=own.patch_size,
        layer_norm_eps=own.rms_norm_eps,
        hidden_act=own.hidden_activation,
    )
    pooled: Keys = {"clip.vision.projector.scale_factor": u32(own.pooling_kernel_size)}
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, with_means(whole), "gemma4v", of_several=True)
        | activation_keys(own.hidden_activation, where)
        | (pooled if own.pooling_kernel_size != _POOLED else {}),
        rows=_sees(own),
        sizes={
            "hidden": own.hidden_size,
            "ffn": own.intermediate_size,
            "head": own.head_dim,
            "patch": 3 * own.patch_size**2,
            "positions": own.position_embedding_size,
            "axes": 2,
            "text": whole.n_text,
        },
        n_layers=own.num_hidden_layers,
        tied=None,
        deviations=tuple(picture_warnings(whole)),
    )


def _pictures(own: _Sees, whole: Whole) -> Iterator[str]:
    return picture_problems(whole, own.patch_size, own.pooling_kernel_size)


def _seen(own: _Sees, config: Mapping[str, Any], where: str) -> Iterator[str]:
    n = own.num_attention_heads
    if own.head_dim * n != own.hidden_size:
        yield (
            f"{where}: head_dim is {own.head_dim}; llama.cpp divides hidden_size"
            f" {own.hidden_size} by {n} heads"
        )
    if own.num_key_value_heads != n:
        yield (
            f"{where}: num_key_value_heads is {own.num_key_value_heads}; llama.cpp computes as many"
            f" as num_attention_heads, {n}"
        )
    yield from rotary_problems(config, own.head_dim, where, _THETA)


def _sees(own: _Sees) -> tuple[Row, ...]:
    """Return the rows of the vision encoder."""
    clipped = partial(clippable, bounds=own.use_clipped_linears)
    mlp, attention = _LAYER + "mlp.", _LAYER + "self_attn."
    standard = (
        Row(_SEES + "std_bias", "v.std_bias", "hidden"),
        Row(_SEES + "std_scale", "v.std_scale", "hidden"),
    )
    return (
        Row(
            _SEES + "patch_embedder.input_proj.weight",
            "v.patch_embd.weight",
            "hidden patch",
            via=patches,
        ),
        Row(
            _SEES + "patch_embedder.position_embedding_table",
            "v.position_embd.weight",
            "axes positions hidden",
        ),
        Row(_LAYER + "input_layernorm.weight", OUT + "ln1.weight", "hidden"),
        *clipped(attention + "q_proj", OUT + "attn_q", "hidden hidden"),
        *clipped(attention + "k_proj", OUT + "attn_k", "hidden hidden"),
        *clipped(attention + "v_proj", OUT + "attn_v", "hidden hidden"),
        *clipped(attention + "o_proj", OUT + "attn_out", "hidden hidden"),
        Row(attention + "q_norm.weight", OUT + "attn_q_norm.weight", "head"),
        Row(attention + "k_norm.weight", OUT + "attn_k_norm.weight", "head"),
        Row(_LAYER + "post_attention_layernorm.weight", OUT + "attn_post_norm.weight", "hidden"),
        Row(_LAYER + "pre_feedforward_layernorm.weight", OUT + "ln2.weight", "hidden"),
        *clipped(mlp + "gate_proj", OUT + "ffn_gate", "ffn hidden"),
        *clipped(mlp + "up_proj", OUT + "ffn_up", "ffn hidden"),
        *clipped(mlp + "down_proj", OUT + "ffn_down", "hidden ffn"),
        Row(_LAYER + "post_feedforward_layernorm.weight", OUT + "ffn_post_norm.weight", "hidden"),
        *(standard if own.standardize else ()),
        Row(
            "model.embed_vision.embedding_projection.weight",
            "mm.input_projection.weight",
            "text hidden",
        ),
    )


PROJECTORS = {
    "Gemma4ForConditionalGeneration": (
        Tower(
            gemma4v,
            r"(vision_tower|embed_vision)\.",
            Settings(
                read=reads(_Sees, more="rope_theta"),
                harmless=harmless(
                    "limits that llama.cpp has too, or does not need",
                    "max_position_embeddings default_output_length global_head_dim",
                ),
                only=constant(False, "attention_bias"),
            ),
        ),
        Tower(
            gemma4_audio.gemma4a,
            r"(audio_tower|embed_audio)\.",
            gemma4_audio.SETTINGS,
            "audio_config",
            optional=True,
        ),
    ),
}
