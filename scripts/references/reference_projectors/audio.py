"""Voxtral and Qwen2-Audio with a tiny Whisper: sounds whose lengths are no whole frames.

llama.cpp fills sounds with silence up to 30 seconds and does not mask it, as Voxtral's own code
does. Qwen2-Audio is given the silence as a part of the sound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reference_tokenizers import make_llama3_bpe, make_qwen_bpe

from reference_projectors import (
    SMALL_TEXT,
    Case,
    Inputs,
    Media,
    OfTransformers,
    sound,
    with_marks,
)

TEXT: dict[str, Any] = {
    **SMALL_TEXT,
    "max_position_embeddings": 1024,
    "vocab_size": 456,
    "num_hidden_layers": 2,
}
N_MELS = 18


def extractor(n_mels: int = N_MELS) -> dict[str, Any]:
    """Return preprocessor_config.json of published files."""
    return {
        "chunk_length": 30,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": n_mels,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }


def mel(folder: Path, one: Media, **options: Any) -> torch.Tensor:
    """Return the logarithmic mel spectrogram of a sound, float32 [1, mels, frames]."""
    features = transformers.AutoFeatureExtractor.from_pretrained(folder)
    found = features(one, sampling_rate=16000, return_tensors="pt", **options)
    return found["input_features"]


def windows(folder: Path, one: Media) -> torch.Tensor:
    """Return the spectrograms of windows of 30 seconds, float32 [windows, mels, 3000]."""
    n = 480000
    found = mel(folder, one, truncation=False, padding=True, pad_to_multiple_of=n)[0]
    return found.reshape(len(found), -1, 3000).transpose(0, 1)


def long_sound() -> Media:
    """Return a sound of more than 30 seconds that files can store: a short one again and again."""
    return np.tile(sound(0.25, 3), 129)


def _pool(model: transformers.PreTrainedModel) -> None:
    """Average each two frames of a Voxtral's encoder, as llama.cpp does.

    Voxtral has a module for it that its own code does not use.
    """
    tower = model.model.audio_tower

    def pool(_module: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (frames,) = given
        averaged = tower.avg_pooler(frames.transpose(1, 2)).transpose(1, 2)
        # llama.cpp leaves the last two of 750 out, which do not make up a token.
        return (averaged[:, :748],)

    tower.layer_norm.register_forward_pre_hook(pool)


def _voxtral_inputs(folder: Path, one: Media) -> Inputs:
    return {"input_features": windows(folder, one)}


def _voxtral_features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    return [model.get_audio_features(**inputs).pooler_output]


def _qwen_inputs(folder: Path, one: Media) -> Inputs:
    found = mel(folder, one)
    return {"input_features": found, "feature_attention_mask": torch.ones(1, found.shape[2])}


def _qwen_features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    frames = model.model.audio_tower(inputs["input_features"]).last_hidden_state
    return [model.model.multi_modal_projector(frames)[0]]


CASES = {
    "voxtral": Case(
        model=OfTransformers(
            transformers.VoxtralConfig(
                text_config={
                    **TEXT,
                    "model_type": "llama",
                    "head_dim": 8,
                    "bos_token_id": 442,
                    "eos_token_id": 447,
                },
                audio_config={
                    "hidden_size": 20,
                    "intermediate_size": 80,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 2,
                    "num_mel_bins": N_MELS,
                },
                audio_token_id=449,
            ),
            adapt=_pool,
        ),
        tokenizer=with_marks(make_llama3_bpe, "[BEGIN_AUDIO]", "[AUDIO]"),
        processor=extractor(),
        media=(sound(1.234, 1), sound(2.05, 2), long_sound()),
        inputs=_voxtral_inputs,
        features=_voxtral_features,
        in_prompt="[BEGIN_AUDIO][AUDIO]",
        placeholders=(449,),
    ),
    "qwen2audio": Case(
        model=OfTransformers(
            transformers.Qwen2AudioConfig(
                text_config={
                    **TEXT,
                    "model_type": "qwen2",
                    "bos_token_id": 400,
                    "eos_token_id": 402,
                },
                audio_config={
                    "d_model": 24,
                    "encoder_ffn_dim": 40,
                    "encoder_layers": 3,
                    "encoder_attention_heads": 2,
                    "num_mel_bins": N_MELS,
                },
                audio_token_index=405,
            )
        ),
        tokenizer=with_marks(make_qwen_bpe, "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>"),
        processor=extractor(),
        media=(sound(1.234, 1), sound(2.05, 2)),
        inputs=_qwen_inputs,
        features=_qwen_features,
        in_prompt="<|audio_bos|><|AUDIO|><|audio_eos|>",
        placeholders=(405,),
    ),
}
