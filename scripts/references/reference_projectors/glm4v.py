"""GLM-4.1V, GLM-OCR and GLM-5.3: multiples of a merged patch, and a picture that is resized."""

from __future__ import annotations

from functools import partial
from typing import Any

import transformers
from reference_families.glm5_next import TEXT as GLM5
from reference_tokenizers import make_qwen_bpe

from reference_projectors import (
    CLIP_COLOURS,
    QWEN_TEXT,
    Case,
    Media,
    OfTransformers,
    picture,
    processed,
)
from reference_projectors.qwen_vl import kinds_of_tokens

_UNIT = 28
_TEXT: dict[str, Any] = {
    **QWEN_TEXT,
    "rms_norm_eps": 1e-5,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "eos_token_id": [400, 402],
    "pad_token_id": 400,
}
_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 24,
    "num_heads": 2,
    "image_size": 70,
    "intermediate_size": 40,
    "out_hidden_size": 32,
}
_IMAGES: dict[str, Any] = {
    "image_start_token_id": 407,
    "image_end_token_id": 408,
    "image_token_id": 409,
    "video_token_id": 410,
    "video_start_token_id": 411,
    "video_end_token_id": 412,
}


def _rope(*sections: int, part: float = 0.5) -> dict[str, Any]:
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": part,
        "mrope_section": [*sections],
    }


def _text_of_glm5() -> dict[str, Any]:
    """Return two of the layers of the family's reference, which see all tokens of a picture."""
    linear = {**GLM5["linear_attn_config"], "full_attn_layers": [1], "kda_layers": [0]}
    return {
        **GLM5,
        **{name: GLM5[name][:2] for name in ("layer_types", "mlp_layer_types", "indexer_types")},
        "linear_attn_config": linear,
        "num_hidden_layers": 2,
        "index_topk": 96,
    }


_MARKS = (
    "[gMASK]",
    "<sop>",
    "<|user|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|image|>",
    "<|video|>",
)
_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "Glm4vImageProcessor",
    **CLIP_COLOURS,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    # llama.cpp takes 8 to 4096 tokens.
    "size": {"shortest_edge": 2 * 8 * _UNIT**2, "longest_edge": 2 * 4096 * _UNIT**2},
}


_PICTURES = (
    picture(5 * _UNIT, 3 * _UNIT, 1),
    picture(3 * _UNIT, 7 * _UNIT, 2),
    # Both programs enlarge it, to the same shape.
    picture(3 * 26, 4 * 26, 3),
)


def _case(
    config: transformers.PretrainedConfig,
    processor: dict[str, Any] = _PROCESSOR,
    media: tuple[Media, ...] = _PICTURES,
) -> Case:
    return Case(
        model=OfTransformers(config),
        tokenizer=partial(make_qwen_bpe, plain=_MARKS),
        processor=processor,
        media=media,
        inputs=processed("pixel_values", "image_grid_thw"),
        in_prompt="<|begin_of_image|><|image|><|end_of_image|>",
        placeholders=(_IMAGES["image_token_id"],),
        more=kinds_of_tokens(_IMAGES["image_token_id"]),
    )


CASES = {
    "glm4v": _case(
        transformers.Glm4vConfig(
            text_config={**_TEXT, "attention_bias": True, "rope_parameters": _rope(1, 1, 2)},
            vision_config={**_VISION, "attention_bias": True},
            tie_word_embeddings=False,
            **_IMAGES,
        )
    ),
    "glm-ocr": _case(
        transformers.GlmOcrConfig(
            text_config={
                **_TEXT,
                "num_attention_heads": 3,
                "head_dim": 20,
                "rope_parameters": _rope(3, 2, 1, part=0.6),
            },
            vision_config=_VISION,
            tie_word_embeddings=False,
            **_IMAGES,
        )
    ),
    "glm5next": _case(
        transformers.Glm5NextConfig(
            text_config=_text_of_glm5(),
            vision_config={**_VISION, "projection_intermediate_size": 56, "swiglu_limit": 0.7},
            tie_word_embeddings=False,
            **_IMAGES,
        ),
        processor={
            **{name: value for name, value in _PROCESSOR.items() if name != "size"},
            "image_processor_type": "Glm5NextImageProcessor",
            "min_image_tokens": 16,
            "max_image_tokens": 30,
        },
        # As it is; padded; reduced to the largest number of tokens.
        media=(
            picture(5 * _UNIT, 4 * _UNIT, 1),
            picture(2 * _UNIT + 9, 7 * _UNIT + 5, 2),
            picture(11 * _UNIT, 6 * _UNIT, 3),
        ),
    ),
}
