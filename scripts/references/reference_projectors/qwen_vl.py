"""Qwen2-VL, 2.5-VL and 3-VL: pictures whose sides are multiples of a merged patch, as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from reference_tokenizers import Encode, make_qwen_bpe

from reference_projectors import Case, Inputs, Media, picture

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "vocab_size": 416,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 72,
    "bos_token_id": 400,
    "eos_token_id": 402,
}
_TOKENS: dict[str, Any] = {
    "vision_start_token_id": 403,
    "vision_end_token_id": 404,
    "image_token_id": 405,
    "video_token_id": 406,
}
_VISION: dict[str, Any] = {"depth": 4, "num_heads": 2, "patch_size": 14}
_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _rope(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [*sections]}


def _tokenizer(folder: Path) -> Encode:
    return make_qwen_bpe(folder, _MARKS)


def _processor(patch: int) -> dict[str, Any]:
    # llama.cpp takes 8 to 4096 tokens.
    pixels = patch * patch * 4
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 8 * pixels,
        "max_pixels": 4096 * pixels,
    }


def _inputs(folder: Path, one: Media) -> Inputs:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = processor(images=[Image.fromarray(one)], return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "image_grid_thw")}


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the embeddings, with those for deeper layers beside them."""
    found = model.get_image_features(**inputs)
    deep = getattr(found, "deepstack_features", None) or []
    return torch.cat([found.pooler_output[0], *(each[0] for each in deep)], dim=-1)


def _more(ids: torch.Tensor, token: int) -> Inputs:
    return {"mm_token_type_ids": (ids == token).int()}


def _case(config: transformers.PretrainedConfig, patch: int, **changes: Any) -> Case:
    unit = 2 * patch
    return Case(
        config,
        _tokenizer,
        _processor(patch),
        (
            picture(5 * unit, 3 * unit, 1),
            picture(3 * unit, 7 * unit, 2),
            picture(3 * unit + 3, 5 * unit + 5, 3),
        ),
        _inputs,
        _features,
        "The whale<|vision_start|>",
        "<|vision_end|> was white",
        "The whale<__media__> was white",
        _TOKENS["image_token_id"],
        _more,
        **changes,
    )


CASES = {
    "qwen2vl": _case(
        transformers.Qwen2VLConfig(
            text_config={**_TEXT, "rope_parameters": _rope(1, 2, 1)},
            vision_config={**_VISION, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        14,
    ),
    "qwen2.5vl": _case(
        transformers.Qwen2_5_VLConfig(
            text_config={**_TEXT, "rope_parameters": _rope(2, 1, 1)},
            vision_config={
                **_VISION,
                "hidden_size": 24,
                "intermediate_size": 40,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1, 3],
            },
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        14,
    ),
    "qwen3vl": _case(
        transformers.Qwen3VLConfig(
            text_config={**_TEXT, "head_dim": 24, "rope_parameters": _rope(5, 4, 3)},
            vision_config={
                **_VISION,
                "patch_size": 16,
                "hidden_size": 24,
                "intermediate_size": 40,
                "out_hidden_size": 32,
                "num_position_embeddings": 49,
                "deepstack_visual_indexes": [0, 2],
            },
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        16,
    ),
}
