"""Audio encoders: the keys that all have, and what llama.cpp makes of sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.config import Count, LayersCount, read_config, usual_names
from dynquant.arch.settings import constant, harmless
from dynquant.arch.towers.whole import Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, boolean, f32, string, u32
from dynquant.untrusted import shown

OUT = "a.blk.{}."

EPSILON = 1e-5
"""Of all norms: no class has a setting for it."""

OWN_NAMES = {
    "d_model": "hidden_size",
    "encoder_ffn_dim": "intermediate_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
}
_SOUNDS = {"sampling_rate": 16000, "n_fft": 400, "hop_length": 160, "padding_value": 0.0}
"""What llama.cpp computes of the feature extractor's settings."""

NAMES = " ".join(OWN_NAMES)
"""The names that Whisper has for the usual settings."""

ONLY = constant("gelu", "activation_function")
"""Settings with one supported value."""

HARMLESS = {
    **harmless(
        "used while training only",
        "dropout activation_dropout attention_dropout encoder_layerdrop layerdrop init_std"
        " apply_spec_augment mask_time_prob mask_time_length mask_time_min_masks"
        " mask_feature_prob mask_feature_length mask_feature_min_masks median_filter_width"
        " classifier_proj_size use_weighted_layer_sum",
    ),
    **harmless("the model's own code does not use it", "scale_embedding"),
    **harmless(
        "of Whisper's decoder and its tokens, which are not used",
        "vocab_size max_target_positions decoder_layers decoder_attention_heads decoder_ffn_dim"
        " decoder_layerdrop forced_decoder_ids lang_to_id task_to_id alignment_heads"
        " tie_word_embeddings",
    ),
    **harmless("the heads make up the whole width", "head_dim num_key_value_heads"),
    **harmless("what the encoder was cut out of", "is_encoder_decoder is_decoder"),
}
"""Settings that do not change the embeddings, with the reason."""

WIDTH = harmless("the width of the language model, which is read there", "output_dim")
"""A setting of encoders that contain what joins them to the language model."""


@dataclass(frozen=True)
class Audio:
    """Settings of an audio encoder, with their usual names."""

    hidden_size: Count = 1280
    intermediate_size: Count = 5120
    num_hidden_layers: LayersCount = 32
    num_attention_heads: Count = 20
    num_mel_bins: Count = 128


def read_audio(config: Mapping[str, Any], where: str) -> Audio:
    """Return the settings of an audio encoder, which has Whisper's names for them or the usual.

    Raises ArchitectureError for wrong types, and for two names with different values.
    """
    return read_config(Audio, usual_names(config, where, OWN_NAMES), where)


def audio_keys(
    a: Audio, whole: Whole, kind: str, where: str, *, n_text: int, of_several: bool = False
) -> Keys:
    """Return the keys of every audio encoder, in the order of llama.cpp's converter.

    kind:       llama.cpp's name of the projector
    where:      the place of the encoder's settings, which begins messages
    n_text:     the width of the language model
    of_several: whether the file has a vision encoder too, of another kind

    Raises ArchitectureError for an encoder or sounds that llama.cpp cannot compute.
    """
    ArchitectureError.raise_any([*_problems(a, where), *_sounds(a, whole)])
    return {
        "clip.has_audio_encoder": boolean(True),
        "clip.audio.projection_dim": u32(n_text),
        "clip.audio.embedding_length": u32(a.hidden_size),
        "clip.audio.feed_forward_length": u32(a.intermediate_size),
        "clip.audio.block_count": u32(a.num_hidden_layers),
        "clip.audio.attention.head_count": u32(a.num_attention_heads),
        f"clip.{'audio.' if of_several else ''}projector_type": string(kind),
        "clip.audio.num_mel_bins": u32(a.num_mel_bins),
        "clip.audio.attention.layer_norm_epsilon": f32(EPSILON),
    }


def _problems(a: Audio, where: str) -> Iterator[str]:
    if a.hidden_size % a.num_attention_heads:
        yield (
            f"{where}: hidden_size is {a.hidden_size}, which is not a multiple of the"
            f" {a.num_attention_heads} heads"
        )


def _sounds(a: Audio, whole: Whole) -> Iterator[str]:
    where = f"{whole.folder}: settings of the feature extractor"
    for name, only in {"feature_size": a.num_mel_bins, **_SOUNDS}.items():
        value = whole.sounds.get(name)
        if value is not None and value != only:
            yield f"{where}: {name} is {shown(value)}; llama.cpp computes {shown(only)}"
