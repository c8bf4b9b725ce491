"""Qwen3-Omni: Qwen3-VL's vision encoder, and an encoder that takes sounds as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, read_config
from dynquant.arch.projectors import qwen_vl
from dynquant.arch.settings import Settings, constant, harmless, reads
from dynquant.arch.towers import audio, whisper
from dynquant.arch.towers.audio import Audio, audio_keys, read_audio
from dynquant.arch.towers.vision import biased, of_several
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.tensors import TensorSource
from dynquant.transforms import Reshaped, with_zero_rows

_HEARS = whisper.IN
_SEEN = "thinker_config.vision_config"
_MERGERS = {
    "deepstack_merger_list": "merger_list",
    ".norm.": ".ln_q.",
    "linear_fc1": "mlp.0",
    "linear_fc2": "mlp.2",
}
"""Parts of names in Qwen3-VL, and what Qwen3-Omni has for them."""


@dataclass(frozen=True)
class _Convolutions:
    downsample_hidden_size: Count = 480


def sees(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Qwen3-Omni: Qwen3-VL's, with other names."""
    found = qwen_vl.qwen3vl(config, whole)
    return replace(found, keys=of_several(found.keys), rows=tuple(map(_renamed, found.rows)))


def _renamed(row: Row) -> Row:
    if "merger" not in row.stored:
        return row
    for before, after in _MERGERS.items():
        row = row.within(before, after)
    return row


def hears(config: Mapping[str, Any], whole: Whole) -> Architecture:
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
        extra=(whisper.computed_positions(a, where),),
        deviations=(second,),
    )


def _reduced(config: Mapping[str, Any], a: Audio, where: str) -> int:
    """Return the numbers of a frame after three convolutions, each of which halves the bins."""
    n_bins = a.num_mel_bins
    for _ in range(3):
        n_bins = (n_bins + 1) // 2
    return n_bins * read_config(_Convolutions, config, where).downsample_hidden_size


def _n_deepstack(whole: Whole) -> int:
    return len(qwen_vl.deepstack_layers(whole.part(_SEEN), whole.where))


def _as_planes(source: TensorSource) -> TensorSource:
    return Reshaped(source, (*source.shape, 1, 1))


def _picture_convolution(number: int, n_in: str) -> tuple[Row, Row]:
    stored, name = f"{_HEARS}conv2d{number}.", f"a.conv2d.{number}."
    return (
        Row(stored + "weight", name + "weight", f"down {n_in} kernel kernel"),
        Row(stored + "bias", name + "bias", "down", via=_as_planes),
    )


_SEES = replace(
    qwen_vl.SETTINGS3,
    harmless={
        **qwen_vl.SETTINGS3.harmless,
        **harmless("num_position_embeddings states it", "image_size"),
        **harmless("an encoder has no words", "tie_word_embeddings"),
        **harmless("the model's own code always adds positions", "apply_vit_abs_pos_embed"),
    },
)
_HEARD = Settings(
    read=reads(Audio, _Convolutions, more=audio.NAMES),
    harmless=audio.HARMLESS
    | audio.WIDTH
    | harmless("how many seconds are computed together", "conv_chunksize")
    | harmless("positions begin again each second", "max_source_positions"),
    only=audio.ONLY | constant(50, "n_window") | constant(800, "n_window_infer"),
)
_OMNI = (
    Tower(sees, qwen_vl.WITHIN, _SEES, _SEEN),
    Tower(hears, r"audio_tower\.", _HEARD, "thinker_config.audio_config"),
)
PROJECTORS = {
    "Qwen3OmniMoeForConditionalGeneration": _OMNI,
    "Qwen3OmniMoeThinkerForConditionalGeneration": _OMNI,
}
