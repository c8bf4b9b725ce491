"""Qwen2.5-Omni and Qwen3-Omni: the vision encoders of Qwen-VL, and encoders of sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dynquant.arch.base import Architecture, ModelTensor, Row
from dynquant.arch.config import Count, read_config
from dynquant.arch.projectors import qwen_vl
from dynquant.arch.settings import Settings, constant, harmless, reads
from dynquant.arch.towers import audio, whisper
from dynquant.arch.towers.audio import Audio, audio_keys, read_audio
from dynquant.arch.towers.vision import OUT, biased
from dynquant.arch.towers.whole import CLIP, Projector, Tower, Whole
from dynquant.keys import Keys
from dynquant.tensors import Computed, TensorSource
from dynquant.transforms import Reshaped, with_zero_rows

_HEARS = whisper.IN
_BLOCK = "model.visual.blocks.{}.attn."
_FUSED = f"{_BLOCK}qkv."
_APART = (
    *biased(_BLOCK + "q", OUT + "attn_q", "hidden hidden"),
    *biased(_BLOCK + "k", OUT + "attn_k", "hidden hidden"),
    *biased(_BLOCK + "v", OUT + "attn_v", "hidden hidden"),
)
_MERGERS = {
    "deepstack_merger_list": "merger_list",
    ".norm.": ".ln_q.",
    "linear_fc1": "mlp.0",
    "linear_fc2": "mlp.2",
}
"""Parts of names in Qwen3-VL, and what Qwen3-Omni has for them."""

_TIMESCALE = 10000
"""The longest wave of the positions."""


@dataclass(frozen=True)
class _Windows:
    n_window: Count = 100


@dataclass(frozen=True)
class _Convolutions:
    downsample_hidden_size: Count = 480


def _of_several(keys: Keys) -> Keys:
    """Return keys of a vision encoder that stands beside an audio encoder."""
    kind = "clip.projector_type"
    return {n if n != kind else "clip.vision.projector_type": v for n, v in keys.items()}


def _positions(width: int) -> ModelTensor:
    """Return the positions, which are not stored: sines, then cosines, float32 [1500, width].

    As in the model's own code, waves and angles are rounded to float32. Functions are computed in
    float64, so that every machine rounds to the same numbers.
    """
    n = width // 2
    step = np.float32(-np.log(_TIMESCALE) / (n - 1))
    logarithms = step * np.arange(n, dtype=np.float32)
    waves = np.exp(logarithms.astype(np.float64)).astype(np.float32)
    angles = (np.arange(whisper.FRAMES // 2, dtype=np.float32)[:, None] * waves).astype(np.float64)
    values = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return ModelTensor("a.position_embd.weight", Computed(values.astype(np.float32)))


def sees25(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Qwen2.5-Omni: Qwen2.5-VL's, with matrices stored apart."""
    found = qwen_vl.qwen25vl(config, whole)
    rows = (row for row in found.rows if not row.stored.startswith(_FUSED))
    marks = (
        f"{whole.where}: llama.cpp puts <|vision_start|> and <|vision_end|> around pictures, where"
        " Qwen2.5-Omni has <|vision_bos|> and <|vision_eos|>; its answers about pictures differ"
    )
    return replace(
        found,
        keys=_of_several(found.keys),
        rows=(*rows, *_APART),
        deviations=(*found.deviations, marks),
    )


def hears25(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the audio encoder of a Qwen2.5-Omni: Whisper's layers, in windows."""
    where = f"{whole.where}: audio_config"
    a = read_audio(config, where)
    seconds = read_config(_Windows, config, where).n_window * 2 / 100
    windows = (
        f"{where}: llama.cpp computes windows of 30 seconds, filled with silence, and gives the"
        f" language model the silence too; the model's own code computes windows of {seconds:g}"
        " seconds without silence, so sounds are understood less well"
    )
    return Architecture(
        name=CLIP,
        keys=audio_keys(a, whole, "qwen2a", where, n_text=whole.n_text, of_several=True),
        rows=(
            *whisper.CONVOLUTIONS,
            *whisper.LAYERS,
            *biased(_HEARS + "ln_post", "a.post_ln", "hidden"),
            *biased(_HEARS + "proj", "mm.a.fc", "text hidden"),
        ),
        sizes=whisper.sizes(a, whole.n_text),
        n_layers=a.num_hidden_layers,
        tied=None,
        extra=(_positions(a.hidden_size),),
        ignored={r".*\.audio_bos_eos_token\.weight": "embeddings that the model does not use"},
        deviations=(windows,),
    )


def sees3(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Qwen3-Omni: Qwen3-VL's, with other names."""
    found = qwen_vl.qwen3vl(config, whole)
    return replace(found, keys=_of_several(found.keys), rows=tuple(map(_renamed, found.rows)))


def _renamed(row: Row) -> Row:
    if "merger" not in row.stored:
        return row
    for before, after in _MERGERS.items():
        row = row.within(before, after)
    return row


def hears3(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the audio encoder of a Qwen3-Omni: seconds of sound as pictures, then layers.

    llama.cpp needs embeddings as wide as those of pictures, which contain features for deeper
    layers: those of sounds are zero.
    """
    where = f"{whole.where}: audio_config"
    a = read_audio(config, where)
    n_text, n_deep = whole.n_text, _n_deepstack(whole)
    wide = partial(with_zero_rows, n=n_text * (1 + n_deep)) if n_deep else None
    second = (
        f"{where}: llama.cpp fills a sound up to a whole second, and gives the language model what"
        " it fills in too, which the model's own code does not"
    )
    last = _HEARS + "proj2."
    return Architecture(
        name=CLIP,
        keys=audio_keys(a, whole, "qwen3a", where, n_text=n_text, of_several=True),
        rows=(
            *_picture_convolution(1, "one"),
            *_picture_convolution(2, "down"),
            *_picture_convolution(3, "down"),
            Row(_HEARS + "conv_out.weight", "a.conv_out.weight", "hidden reduced"),
            *whisper.LAYERS,
            Row(_HEARS + "layers.{}.self_attn.k_proj.bias", "a.blk.{}.attn_k.bias", "hidden"),
            *biased(_HEARS + "ln_post", "a.post_ln", "hidden"),
            *biased(_HEARS + "proj1", "mm.a.mlp.1", "hidden hidden"),
            Row(last + "weight", "mm.a.mlp.2.weight", "text hidden", via=wide),
            Row(last + "bias", "mm.a.mlp.2.bias", "text", via=wide),
        ),
        sizes={
            **whisper.sizes(a, n_text),
            "one": 1,
            "down": read_config(_Convolutions, config, where).downsample_hidden_size,
            "reduced": _reduced(config, a, where),
        },
        n_layers=a.num_hidden_layers,
        tied=None,
        extra=(_positions(a.hidden_size),),
        deviations=(second,),
    )


def _reduced(config: Mapping[str, Any], a: Audio, where: str) -> int:
    """Return the numbers of a frame after three convolutions, each of which halves the bins."""
    n_bins = a.num_mel_bins
    for _ in range(3):
        n_bins = (n_bins + 1) // 2
    return n_bins * read_config(_Convolutions, config, where).downsample_hidden_size


def _n_deepstack(whole: Whole) -> int:
    place = "thinker_config." if "thinker_config" in whole.config else ""
    return len(qwen_vl.deepstack_layers(whole.part(f"{place}vision_config"), whole.where))


def _as_planes(source: TensorSource) -> TensorSource:
    return Reshaped(source, (*source.shape, 1, 1))


def _picture_convolution(number: int, n_in: str) -> tuple[Row, Row]:
    stored, name = f"{_HEARS}conv2d{number}.", f"a.conv2d.{number}."
    return (
        Row(stored + "weight", name + "weight", f"down {n_in} kernel kernel"),
        Row(stored + "bias", name + "bias", "down", via=_as_planes),
    )


_WIDTH = harmless("the width of the language model, which is read there", "output_dim")
_MORE = audio.HARMLESS | _WIDTH
_HEARD = r"audio_tower\."
_HEARS25 = Settings(
    read=reads(Audio, _Windows, more=audio.NAMES),
    harmless=_MORE,
    only=audio.ONLY | constant(1500, "max_source_positions"),
)
_HEARS3 = Settings(
    read=reads(Audio, _Convolutions, more=audio.NAMES),
    harmless=_MORE
    | harmless("how many seconds are computed together", "conv_chunksize")
    | harmless("positions begin again each second", "max_source_positions"),
    only=audio.ONLY | constant(50, "n_window") | constant(800, "n_window_infer"),
)
_SEES25 = replace(
    qwen_vl.SETTINGS25,
    harmless=qwen_vl.SETTINGS25.harmless | harmless("hidden_size states it", "embed_dim"),
)
_SEES3 = replace(
    qwen_vl.SETTINGS3,
    harmless=qwen_vl.SETTINGS3.harmless
    | harmless("num_position_embeddings states it", "image_size")
    | harmless("the model's own code always adds positions", "apply_vit_abs_pos_embed"),
)


def _omni25(place: str) -> Projector:
    return (
        Tower(sees25, qwen_vl.WITHIN, _SEES25, f"{place}vision_config"),
        Tower(hears25, _HEARD, _HEARS25, f"{place}audio_config"),
    )


def _omni3(place: str) -> Projector:
    return (
        Tower(sees3, qwen_vl.WITHIN, _SEES3, f"{place}vision_config"),
        Tower(hears3, _HEARD, _HEARS3, f"{place}audio_config"),
    )


_OMNI25, _OMNI3 = _omni25("thinker_config."), _omni3("thinker_config.")
PROJECTORS = {
    "Qwen2_5OmniForConditionalGeneration": _OMNI25,
    "Qwen2_5OmniModel": _OMNI25,
    "Qwen2_5OmniThinkerForConditionalGeneration": _omni25(""),
    "Qwen3OmniMoeForConditionalGeneration": _OMNI3,
    "Qwen3OmniMoeThinkerForConditionalGeneration": _omni3(""),
}
