"""Qwen2.5-Omni and Qwen3-Omni: the parts that think, which see and hear, as published.

transformers is given the spectrograms that llama.cpp computes. For Qwen2.5-Omni these are windows
of 30 seconds, so the tiny model's own windows are as long. For Qwen3-Omni they are whole seconds,
whose last one is filled with zeros.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import Encode, make_qwen_bpe, write_json
from safetensors.torch import load_file, save_file

from reference_projectors import Case, Inputs, Media, picture, sound, with_marks
from reference_projectors.audio import N_MELS, TEXT, extractor, long_sound, windows
from reference_projectors.qwen_vl import _inputs as see
from reference_projectors.qwen_vl import _processor, _rope

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
_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_IMAGE, _VIDEO, _AUDIO = 405, 406, 409


@dataclass(frozen=True)
class _Thinker:
    """The part of an Omni that thinks, with the names of the whole.

    kind: the class of the whole; model_type: its own
    """

    kind: str
    model_type: str
    config: transformers.PretrainedConfig
    class_: Any

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return self.class_(self.config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights."""
        model.save_pretrained(folder)
        path = folder / "model.safetensors"
        save_file(
            {f"thinker.{name}": t for name, t in load_file(path).items()}, path, {"format": "pt"}
        )
        thinker = json.loads((folder / "config.json").read_text("utf-8"))
        text = thinker["text_config"]
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope.pop("rope_theta")
        text["rope_scaling"] = rope
        whole = {
            "architectures": [self.kind],
            "model_type": self.model_type,
            "enable_audio_output": True,
            "thinker_config": thinker,
        }
        write_json(folder / "config.json", whole)

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        thinker = json.loads((folder / "config.json").read_text("utf-8"))["thinker_config"]
        stored = load_file(folder / "model.safetensors")
        return self.class_.from_pretrained(
            None,
            config=type(self.config)(**thinker),
            state_dict={name.removeprefix("thinker."): t for name, t in stored.items()},
            dtype=torch.float32,
            attn_implementation="eager",
        )


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


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the embeddings, with those for deeper layers beside them: zero for sounds."""
    if "input_features" in inputs:
        found = model.get_audio_features(**inputs).pooler_output
        n_deep = len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))
        return torch.nn.functional.pad(found, (0, n_deep * found.shape[1]))
    found = model.get_image_features(**inputs)
    deep = getattr(found, "deepstack_features", None) or []
    return torch.cat([found.pooler_output[0], *(each[0] for each in deep)], dim=-1)


def _tokenizer(marks: tuple[str, ...]) -> Any:
    def make(folder: Path) -> Encode:
        return make_qwen_bpe(folder, _MARKS)

    return with_marks(make, *marks)


def _case(
    thinker: _Thinker, patch: int, inputs: Any, marks: tuple[str, str, str], *sounds: Media
) -> Case:
    unit = 2 * patch
    return Case(
        thinker.config,
        _tokenizer(marks),
        {
            **extractor(),
            **_processor(patch),
            "min_pixels": 8 * unit * unit,
        },
        (picture(5 * unit, 3 * unit, 1), picture(3 * unit + 3, 5 * unit + 5, 3), *sounds),
        inputs,
        _features,
        "The whale<|vision_start|>",
        "<|vision_end|> was white",
        "The whale<__media__> was white",
        _IMAGE,
        weights=0.35,
        model=thinker,
        of_sounds={
            "before": f"The whale{marks[0]}",
            "after": f"{marks[1]} was white",
            "token": _AUDIO,
        },
    )


CASES = {
    "qwen2.5omni": _case(
        _Thinker(
            "Qwen2_5OmniForConditionalGeneration",
            "qwen2_5_omni",
            transformers.Qwen2_5OmniThinkerConfig(
                text_config={
                    **TEXT,
                    "rms_norm_eps": 1e-6,
                    "tie_word_embeddings": False,
                    "rope_parameters": _rope(2, 1, 1),
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
            transformers.Qwen2_5OmniThinkerForConditionalGeneration,
        ),
        14,
        _inputs25,
        ("<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>"),
        sound(1.234, 1),
        sound(1.05, 2),
    ),
    "qwen3omni": _case(
        _Thinker(
            "Qwen3OmniMoeForConditionalGeneration",
            "qwen3_omni_moe",
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
                    "rope_parameters": _rope(5, 4, 3),
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
            transformers.Qwen3OmniMoeThinkerForConditionalGeneration,
        ),
        16,
        _inputs3,
        ("<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"),
        sound(1.234, 1),
        long_sound()[: 16000 * 9 + 777],
    ),
}
