"""Gemma 4: pictures within llama.cpp's limits of 70 to 1120 tokens, and sounds.

The tokens of a picture see one another in the first layer, and only earlier ones in the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from reference_vocabularies import make_gemma4_bpe
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from reference_projectors import (
    SMALL_ENCODER,
    SMALL_TEXT,
    Case,
    Inputs,
    Media,
    OfTransformers,
    picture,
    sound,
    with_marks,
)

_MARKS = ("<|image>", "<image|>", "<|audio>", "<audio|>", "<|image|>", "<|audio|>", "<|video|>")
_FIRST = 480
_TOKENS: dict[str, Any] = dict(
    zip(
        (
            "boi_token_id",
            "eoi_token_id",
            "boa_token_id",
            "eoa_token_index",
            "image_token_id",
            "audio_token_id",
            "video_token_id",
        ),
        range(_FIRST, _FIRST + len(_MARKS)),
        strict=True,
    )
)
_SEEN, _HEARD = "<|audio|>", "<|video|>"
"""Texts of the placeholders of pictures and sounds.

The tokenizer has `<|image|>` before it gets the marks: the ids of the last two are one less.
"""

_WINDOW, _FULL = "sliding_attention", "full_attention"
_TEXT: dict[str, Any] = {
    **SMALL_TEXT,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "vocab_size": _FIRST + len(_MARKS),
    "head_dim": 12,
    "global_head_dim": 20,
    "intermediate_size": 40,
    "sliding_window": 128,
    "layer_types": [_WINDOW, _FULL, _FULL],
    "use_bidirectional_attention": "vision",
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": _FIRST + len(_MARKS),
}
_VISION: dict[str, Any] = {
    **SMALL_ENCODER,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 48,
}
_AUDIO: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "subsampling_conv_channels": [128, 3],
    "output_proj_dims": 40,
    "use_clipped_linears": True,
}


def _processor(pooled: int) -> dict[str, Any]:
    return {
        "image_processor_type": "Gemma4ImageProcessor",
        "do_normalize": False,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "patch_size": 4,
        "pooling_kernel_size": pooled,
        "max_soft_tokens": 280,
        "resample": 3,
    }


def _inputs(folder: Path, one: Media) -> Inputs:
    """Return what the model's processor makes of a medium that llama.cpp prepares alike."""
    if one.ndim == 1:
        extractor = transformers.Gemma4AudioFeatureExtractor()
        found = extractor([one], return_tensors="pt")
        mask = found["input_features_mask"]
        return {
            "input_features": _not_below(found["input_features"]) * mask[..., None],
            "input_features_mask": mask,
        }
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return _patches(one, processor.patch_size, processor.pooling_kernel_size)


def _inputs_unified(folder: Path, one: Media) -> Inputs:
    if one.ndim == 1:
        return dict(transformers.Gemma4UnifiedAudioFeatureExtractor()([one], return_tensors="pt"))
    settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    # Its own processor needs torchvision; it merges patches, which are then patches of that size.
    return _patches(one, settings["patch_size"] * settings["pooling_kernel_size"], 1)


def _patches(one: Media, patch: int, pooled: int) -> Inputs:
    unit = patch * pooled
    height, width = (round(n / unit) * unit for n in one.shape[:2])
    resized = Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)
    processor = Gemma4ImageProcessorPil(patch_size=patch, pooling_kernel_size=pooled)
    found = processor(images=[resized], do_resize=False, return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "image_position_ids")}


def _not_below(logarithms: torch.Tensor, floor: float = 1e-3) -> torch.Tensor:
    """Return llama.cpp's log(max(x, floor)) from the processor's log(x + floor)."""
    strengths = logarithms.double().exp() - floor
    return strengths.clamp(min=floor).log().float()


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    if "pixel_values" in inputs:
        found = model.get_image_features(**inputs).pooler_output
        return list(found) if isinstance(found, tuple | list) else [found]
    found = model.model.get_audio_features(**inputs)
    return [found.pooler_output[found.attention_mask]]


def _in_prompt(inputs: Inputs) -> str:
    is_seen = "pixel_values" in inputs
    return f"<|image>{_SEEN}<image|>" if is_seen else f"<|audio>{_HEARD}<audio|>"


def _more(ids: torch.Tensor) -> Inputs:
    kinds = torch.zeros_like(ids)
    kinds[ids == _TOKENS["image_token_id"]] = 1
    kinds[ids == _TOKENS["audio_token_id"]] = 3
    return {"mm_token_type_ids": kinds.int()}


def _case(
    config: transformers.PretrainedConfig,
    pooled: int,
    *media: Media,
    inputs: Callable[[Path, Media], Inputs] = _inputs,
) -> Case:
    return Case(
        model=OfTransformers(config),
        tokenizer=with_marks(make_gemma4_bpe, *_MARKS),
        processor=_processor(pooled),
        media=media,
        inputs=inputs,
        features=_features,
        in_prompt=_in_prompt,
        placeholders=(_TOKENS["image_token_id"], _TOKENS["audio_token_id"]),
        more=_more,
        weights=0.15,
    )


CASES = {
    "gemma4": _case(
        transformers.Gemma4Config(
            text_config=_TEXT,
            vision_config={**_VISION, "standardize": True, "pooling_kernel_size": 2},
            **_TOKENS,
        ),
        2,
        picture(64, 96, 1),
        picture(91, 83, 2),
    ),
    "gemma4.e": _case(
        transformers.Gemma4Config(
            text_config={**_TEXT, "hidden_size_per_layer_input": 4},
            vision_config={**_VISION, "use_clipped_linears": True},
            audio_config=_AUDIO,
            **_TOKENS,
        ),
        3,
        picture(108, 96, 3),
        sound(1.7, 1),
        sound(0.63, 2),
    ),
    "gemma4unified": _case(
        transformers.Gemma4UnifiedConfig(
            # With a full layer before the last, transformers' forward and generate disagree.
            text_config={
                **{k: v for k, v in _TEXT.items() if "per_layer" not in k},
                "layer_types": [_WINDOW, _WINDOW, _FULL],
            },
            vision_config={
                "mm_embed_dim": 24,
                "output_proj_dims": 24,
                "mm_posemb_size": 48,
                "patch_size": 4,
                "pooling_kernel_size": 2,
            },
            audio_config={"audio_embed_dim": 640},
            **_TOKENS,
        ),
        2,
        picture(64, 96, 1),
        picture(91, 83, 2),
        sound(0.7, 3),
        inputs=_inputs_unified,
    ),
}
