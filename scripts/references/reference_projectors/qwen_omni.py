"""Qwen2.5-Omni and Qwen3-Omni: the parts that think, which see and hear, as published.

transformers is given the spectrograms that llama.cpp computes. For Qwen2.5-Omni these are windows
of 30 seconds, so the tiny model's own windows are as long. For Qwen3-Omni they are whole seconds,
whose last one is filled with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_families.qwen_vl import Thinker, rope
from reference_tokenizers import make_qwen_bpe

from reference_projectors import Case, Inputs, Media, picture, sound, with_marks
from reference_projectors.audio import N_MELS, TEXT, extractor, long_sound, windows
from reference_projectors.qwen_vl import MARKS, features, processor, see

_SEES: dict[str, Any] = {
    "depth": 4,
    "num_heads": 2,
    "hidden_size": 24,
    "intermediate_size": 40,
    "out_hidden_size": 32,
}
_HEARS: dict[str, Any] = {
    "d_model": 24,
    "encoder_ffn_dim": 40,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "num_mel_bins": N_MELS,
    "output_dim": 32,
}
_IMAGE, _VIDEO, _AUDIO = 405, 406, 409


def seconds(folder: Path, one: Media) -> torch.Tensor:
    """Return the spectrogram of whole seconds, float32 [1, mels, frames].

    The feature extractor leaves the last frame out, which llama.cpp keeps.
    """
    filters = transformers.AutoFeatureExtractor.from_pretrained(folder).mel_filters
    transformed = torch.stft(
        torch.from_numpy(one), 400, 160, window=torch.hann_window(400), return_complex=True
    )
    power = torch.from_numpy(filters).float().T @ (transformed.abs() ** 2)
    found = power.clamp(min=1e-10).log10()
    found = (torch.maximum(found, found.max() - 8.0) + 4.0) / 4.0
    return torch.nn.functional.pad(found, (0, -found.shape[1] % 100))[None]


def _inputs25(folder: Path, one: Media) -> Inputs:
    return see(folder, one) if one.ndim == 3 else _heard(windows(folder, one))


def _inputs3(folder: Path, one: Media) -> Inputs:
    return see(folder, one) if one.ndim == 3 else _heard(seconds(folder, one))


def _heard(spectrogram: torch.Tensor) -> Inputs:
    mask = torch.ones(len(spectrogram), spectrogram.shape[2], dtype=torch.long)
    return {"input_features": spectrogram, "feature_attention_mask": mask}


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    """Return the embeddings, with those for deeper layers beside them: zero for sounds."""
    if "pixel_values" in inputs:
        return features(model, inputs)
    found = model.get_audio_features(**inputs).pooler_output
    n_deep = len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))
    return [torch.nn.functional.pad(found, (0, n_deep * found.shape[1]))]


def _case(
    thinker: Thinker,
    patch: int,
    inputs: Callable[[Path, Media], Inputs],
    marks: tuple[str, str, str],
    *sounds: Media,
) -> Case:
    """Return a case; marks: before and after a sound, and the placeholder of one."""
    before, after, placeholder = marks
    unit = 2 * patch

    def in_prompt(inputs: Inputs) -> str:
        if "pixel_values" in inputs:
            return "<|vision_start|><|image_pad|><|vision_end|>"
        return f"{before}{placeholder}{after}"

    return Case(
        model=thinker,
        tokenizer=with_marks(partial(make_qwen_bpe, plain=MARKS), *marks),
        processor={**extractor(), **processor(patch), "min_pixels": 8 * unit * unit},
        media=(picture(5 * unit, 3 * unit, 1), picture(3 * unit + 3, 5 * unit + 5, 3), *sounds),
        inputs=inputs,
        features=_features,
        in_prompt=in_prompt,
        placeholders=(_IMAGE, _AUDIO),
        weights=0.35,
    )


CASES = {
    "qwen2.5omni": _case(
        Thinker(
            transformers.Qwen2_5OmniThinkerForConditionalGeneration,
            transformers.Qwen2_5OmniThinkerConfig(
                text_config={
                    **TEXT,
                    "rms_norm_eps": 1e-6,
                    "tie_word_embeddings": False,
                    "rope_parameters": rope(2, 1, 1),
                },
                vision_config={**_SEES, "patch_size": 14, "fullatt_block_indexes": [1, 3]},
                audio_config={**_HEARS, "n_window": 1500},
                image_token_index=_IMAGE,
                video_token_index=_VIDEO,
                audio_token_index=_AUDIO,
                audio_start_token_id=407,
                audio_end_token_id=408,
                vision_start_token_id=403,
                vision_end_token_id=404,
            ),
            "Qwen2_5OmniForConditionalGeneration",
            "qwen2_5_omni",
        ),
        14,
        _inputs25,
        ("<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>"),
        sound(1.234, 1),
        sound(1.05, 2),
    ),
    "qwen3omni": _case(
        Thinker(
            transformers.Qwen3OmniMoeThinkerForConditionalGeneration,
            transformers.Qwen3OmniMoeThinkerConfig(
                text_config={
                    **TEXT,
                    "rms_norm_eps": 1e-6,
                    "num_attention_heads": 3,
                    "num_key_value_heads": 1,
                    "head_dim": 24,
                    "num_hidden_layers": 3,
                    "intermediate_size": 24,
                    "moe_intermediate_size": 16,
                    "num_experts": 3,
                    "num_experts_per_tok": 2,
                    "rope_parameters": rope(5, 4, 3),
                },
                vision_config={
                    **_SEES,
                    "depth": 3,
                    "patch_size": 16,
                    "num_position_embeddings": 49,
                    "deepstack_visual_indexes": [0, 2],
                },
                audio_config={**_HEARS, "encoder_layers": 2, "downsample_hidden_size": 6},
                image_token_id=_IMAGE,
                video_token_id=_VIDEO,
                audio_token_id=_AUDIO,
                audio_start_token_id=407,
                vision_start_token_id=403,
                vision_end_token_id=404,
            ),
            "Qwen3OmniMoeForConditionalGeneration",
            "qwen3_omni_moe",
        ),
        16,
        _inputs3,
        ("<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"),
        sound(1.234, 1),
        long_sound()[: 16000 * 9 + 777],
    ),
}
