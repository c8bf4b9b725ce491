"""Gemma 4's audio encoder: a conformer whose attention sees twelve steps of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Truth, read_config
from dynquant.arch.settings import Only, Settings, constant, harmless, reads
from dynquant.arch.towers.gemma4 import audio_keys, clippable
from dynquant.arch.towers.whole import CLIP, Whole
from dynquant.errors import ArchitectureError
from dynquant.transforms import depthwise_kernels, softplus
from dynquant.untrusted import shown

_IN = "model.audio_tower."
_LAYER = _IN + "layers.{}."
_START = _IN + "subsample_conv_projection."
_OUT = "a.blk.{}."


@dataclass(frozen=True)
class _Hears:
    hidden_size: Count = 1024
    num_hidden_layers: LayersCount = 12
    num_attention_heads: Count = 8
    subsampling_conv_channels: tuple[Count, Count] = (128, 32)
    use_clipped_linears: Truth = True
    output_proj_dims: Count = 1536


@dataclass(frozen=True)
class _Extractor:
    """The settings of the feature extractor that llama.cpp fixes, with what it computes."""

    sampling_rate: int = 16000
    frame_length_ms: float = 20.0
    hop_length_ms: float = 10.0
    min_frequency: float = 0.0
    max_frequency: float = 8000.0
    preemphasis: float = 0.0
    fft_overdrive: bool = False
    dither: float = 0.0
    input_scale_factor: float = 1.0
    mel_floor: float = 1e-3
    per_bin_mean: None = None
    per_bin_stddev: None = None


def gemma4a(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the audio encoder of a Gemma 4."""
    where = f"{whole.where}: audio_config"
    own = read_config(_Hears, config, where)
    mels = _n_mels(whole)
    ArchitectureError.raise_any([*_problems(own, mels, where), *_extraction(whole)])
    first, second = own.subsampling_conv_channels
    return Architecture(
        name=CLIP,
        keys=audio_keys(
            whole,
            "gemma4a",
            width=own.hidden_size,
            ffn=4 * own.hidden_size,
            layers=own.num_hidden_layers,
            heads=own.num_attention_heads,
            mels=mels,
        ),
        rows=_rows(own),
        sizes={
            "hidden": own.hidden_size,
            "twice": 2 * own.hidden_size,
            "ffn": 4 * own.hidden_size,
            "head": own.hidden_size // own.num_attention_heads,
            "first": first,
            "second": second,
            "flat": (first // 4) * second,
            "one": 1,
            "three": 3,
            "kernel": 5,
            "projected": own.output_proj_dims,
            "text": whole.n_text,
        },
        n_layers=own.num_hidden_layers,
        tied=None,
        deviations=(
            f"{whole.folder}: the model's feature extractor adds 0.001 to the strength of a"
            " frequency; llama.cpp raises weaker ones to 0.001, which changes the logarithm of very"
            " quiet ones by up to 0.7",
        ),
    )


@dataclass(frozen=True)
class _Mels:
    feature_size: Count = 128


def _n_mels(whole: Whole) -> int:
    where = f"{whole.folder}: settings of the feature extractor"
    return read_config(_Mels, whole.sounds, where).feature_size


def _problems(own: _Hears, mels: int, where: str) -> Iterator[str]:
    if own.hidden_size % own.num_attention_heads:
        yield (
            f"{where}: hidden_size {own.hidden_size} is not a multiple of num_attention_heads"
            f" {own.num_attention_heads}"
        )
    if own.hidden_size % 2:
        yield f"{where}: hidden_size is {own.hidden_size}; llama.cpp computes with even sizes"
    first = own.subsampling_conv_channels[0]
    if (mels + 3) // 4 != first // 4:
        yield (
            f"{where}: subsampling_conv_channels begins with {first}, which is the number of"
            f" frequencies; the feature extractor has {mels} (feature_size)"
        )


def _extraction(whole: Whole) -> Iterator[str]:
    where = f"{whole.folder}: settings of the feature extractor"
    for field in fields(_Extractor):
        found = whole.sounds.get(field.name)
        if found is not None and found != field.default:
            yield f"{where}: {field.name} is {shown(found)}; llama.cpp computes {field.default}"


def _rows(own: _Hears) -> tuple[Row, ...]:
    clipped = partial(clippable, bounds=own.use_clipped_linears)
    attention, light = _LAYER + "self_attn.", _LAYER + "lconv1d."
    return (
        Row(_START + "layer0.conv.weight", "a.conv1d.0.weight", "first one three three"),
        Row(_START + "layer0.norm.weight", "a.conv1d.0.norm.weight", "first"),
        Row(_START + "layer1.conv.weight", "a.conv1d.1.weight", "second first three three"),
        Row(_START + "layer1.norm.weight", "a.conv1d.1.norm.weight", "second"),
        Row(_START + "input_proj_linear.weight", "a.input_projection.weight", "hidden flat"),
        *_half(1, "", own),
        Row(_LAYER + "norm_pre_attn.weight", _OUT + "attn_pre_norm.weight", "hidden"),
        *clipped(attention + "q_proj", _OUT + "attn_q", "hidden hidden"),
        *clipped(attention + "k_proj", _OUT + "attn_k", "hidden hidden"),
        *clipped(attention + "v_proj", _OUT + "attn_v", "hidden hidden"),
        *clipped(attention + "post", _OUT + "attn_out", "hidden hidden"),
        Row(attention + "per_dim_scale", _OUT + "per_dim_scale.weight", "head", via=softplus),
        Row(attention + "relative_k_proj.weight", _OUT + "attn_k_rel.weight", "hidden hidden"),
        Row(_LAYER + "norm_post_attn.weight", _OUT + "attn_post_norm.weight", "hidden"),
        # llama.cpp has the names of these two norms exchanged.
        Row(light + "pre_layer_norm.weight", _OUT + "conv_norm.weight", "hidden"),
        *clipped(light + "linear_start", _OUT + "conv_pw1", "twice hidden"),
        Row(
            light + "depthwise_conv1d.weight",
            _OUT + "conv_dw.weight",
            "hidden one kernel",
            via=depthwise_kernels,
        ),
        Row(light + "conv_norm.weight", _OUT + "norm_conv.weight", "hidden"),
        *clipped(light + "linear_end", _OUT + "conv_pw2", "hidden hidden"),
        *_half(2, "_1", own),
        Row(_LAYER + "norm_out.weight", _OUT + "ln2.weight", "hidden"),
        Row(_IN + "output_proj.weight", "a.pre_encode.out.weight", "projected hidden"),
        Row(_IN + "output_proj.bias", "a.pre_encode.out.bias", "projected"),
        Row(
            "model.embed_audio.embedding_projection.weight",
            "mm.a.input_projection.weight",
            "text projected",
        ),
    )


def _half(number: int, after: str, own: _Hears) -> tuple[Row, ...]:
    """Return the rows of a feed-forward, of which half is added; after: what its names end with."""
    stored = f"{_LAYER}feed_forward{number}."
    clipped = partial(clippable, bounds=own.use_clipped_linears)
    return (
        Row(stored + "pre_layer_norm.weight", f"{_OUT}ffn_norm{after}.weight", "hidden"),
        *clipped(stored + "ffw_layer_1", f"{_OUT}ffn_up{after}", "ffn hidden"),
        *clipped(stored + "ffw_layer_2", f"{_OUT}ffn_down{after}", "hidden ffn"),
        Row(stored + "post_layer_norm.weight", f"{_OUT}ffn_post_norm{after}.weight", "hidden"),
    )


def _fixed(**values: object) -> dict[str, Only]:
    return {
        name: Only((value,), f"llama.cpp computes audio encoders of Gemma 4 with {value}")
        for name, value in values.items()
    }


SETTINGS = Settings(
    read=reads(_Hears),
    harmless=harmless("bounds that no number reaches", "gradient_clipping"),
    only=constant("silu", "hidden_act")
    | _fixed(
        conv_kernel_size=5,
        residual_weight=0.5,
        attention_chunk_size=12,
        attention_context_left=13,
        attention_context_right=0,
        attention_logit_cap=50.0,
        attention_invalid_logits_value=-1e9,
        rms_norm_eps=1e-6,
    ),
)
