"""Qwen2-VL, 2.5-VL and 3-VL: pictures whose sides are multiples of a merged patch, as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from reference_families.qwen_vl import rope
from reference_tokenizers import make_qwen_bpe

from reference_projectors import (
    CLIP_COLOURS,
    QWEN_TEXT,
    Case,
    Inputs,
    OfTransformers,
    picture,
    processed,
)

_TOKENS: dict[str, Any] = {
    "vision_start_token_id": 403,
    "vision_end_token_id": 404,
    "image_token_id": 405,
    "video_token_id": 406,
}
_VISION: dict[str, Any] = {"depth": 4, "num_heads": 2, "patch_size": 14}
MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def processor(patch: int) -> dict[str, Any]:
    """Return preprocessor_config.json of published files, for patches of so many pixels."""
    # llama.cpp takes 8 to 4096 tokens.
    pixels = patch * patch * 4
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        **CLIP_COLOURS,
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 8 * pixels,
        "max_pixels": 4096 * pixels,
    }


see = processed("pixel_values", "image_grid_thw")


def features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    """Return a picture's embeddings, with those for deeper layers beside them."""
    found = model.get_image_features(**inputs)
    deep = getattr(found, "deepstack_features", None) or []
    return [torch.cat([found.pooler_output[0], *(each[0] for each in deep)], dim=-1)]


def kinds_of_tokens(placeholder: int) -> Callable[[torch.Tensor], Inputs]:
    """Return what gives the input that is 1 where a prompt has a placeholder."""
    return lambda ids: {"mm_token_type_ids": (ids == placeholder).int()}


def _case(config: transformers.PretrainedConfig, patch: int) -> Case:
    unit = 2 * patch
    return Case(
        model=OfTransformers(config),
        tokenizer=partial(make_qwen_bpe, plain=MARKS),
        processor=processor(patch),
        media=(
            picture(5 * unit, 3 * unit, 1),
            picture(3 * unit, 7 * unit, 2),
            picture(3 * unit + 3, 5 * unit + 5, 3),
        ),
        inputs=see,
        features=features,
        in_prompt="<|vision_start|><|image_pad|><|vision_end|>",
        placeholders=(_TOKENS["image_token_id"],),
        more=kinds_of_tokens(_TOKENS["image_token_id"]),
    )


CASES = {
    "qwen2vl": _case(
        transformers.Qwen2VLConfig(
            text_config={**QWEN_TEXT, "rope_parameters": rope(1, 2, 1)},
            vision_config={**_VISION, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        14,
    ),
    "qwen2.5vl": _case(
        transformers.Qwen2_5_VLConfig(
            text_config={**QWEN_TEXT, "rope_parameters": rope(2, 1, 1)},
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
            text_config={**QWEN_TEXT, "head_dim": 24, "rope_parameters": rope(5, 4, 3)},
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
