"""Mistral 3, Pixtral and LightOnOCR with a tiny Pixtral encoder, and a mark after each row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from reference_tokenizers import make_llama3_bpe, make_qwen_bpe

from reference_projectors import (
    CLIP_COLOURS,
    LLAMA3_TEXT,
    QWEN_TEXT,
    SMALL_ENCODER,
    Case,
    Inputs,
    OfTransformers,
    picture,
    processed,
    with_marks,
)

_ANGLES = {"rope_type": "default", "rope_theta": 1000000.0}
_TEXT: dict[str, Any] = {
    **LLAMA3_TEXT,
    "head_dim": 12,
    "sliding_window": None,
    "rope_parameters": _ANGLES,
}
_VISION: dict[str, Any] = {
    **SMALL_ENCODER,
    "image_size": 1540,
    "patch_size": 14,
    "hidden_act": "silu",
}
_IMG, _BREAK = 448, 449


def _processor(unit: int, longest: int = 1540) -> dict[str, Any]:
    return {
        "image_processor_type": "PixtralImageProcessor",
        **CLIP_COLOURS,
        "patch_size": {"height": unit, "width": unit},
        "size": {"longest_edge": longest},
        "resample": 3,
    }


_inputs = processed("pixel_values", "image_sizes")


def _features(unit: int) -> Callable[[Any, Inputs], list[torch.Tensor]]:
    """Return what gives the embeddings of each row, and that of the mark between two rows."""

    def features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
        found = model.get_image_features(**inputs).pooler_output[0]
        mark = model.get_input_embeddings()(torch.tensor([_BREAK]))
        rows = found.split(int(inputs["image_sizes"][0, 1]) // unit)
        return [part for row in rows for part in (row, mark)][:-1]

    return features


def _in_prompt(unit: int) -> Callable[[Inputs], str]:
    """Return what gives a placeholder for each row, with marks between two rows."""

    def in_prompt(inputs: Inputs) -> str:
        n_rows = int(inputs["image_sizes"][0, 0]) // unit
        return "[IMG_BREAK]".join(["[IMG]"] * n_rows) + "[IMG_END]"

    return in_prompt


def _case(config: transformers.PretrainedConfig, unit: int) -> Case:
    """Return a case; unit: pixels of a token's side."""
    # llama.cpp takes at least 8 tokens. It enlarges the second picture as the processor does; of
    # most other sizes it pads what the processor stretches.
    less = unit - unit // 14
    return Case(
        model=OfTransformers(config),
        tokenizer=with_marks(make_llama3_bpe, "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        processor=_processor(unit),
        media=(picture(5 * unit, 3 * unit, 1), picture(3 * less, 7 * less, 2)),
        inputs=_inputs,
        features=_features(unit),
        in_prompt=_in_prompt(unit),
        # llama.cpp takes the marks between rows as embeddings of the picture, too.
        placeholders=(_IMG, _BREAK),
    )


CASES = {
    "mistral3": _case(
        transformers.Mistral3Config(
            text_config=transformers.MistralConfig(**_TEXT),
            vision_config=transformers.PixtralVisionConfig(**_VISION),
            image_token_index=_IMG,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        ),
        unit=28,
    ),
    "pixtral": _case(
        transformers.LlavaConfig(
            text_config=transformers.MistralConfig(**_TEXT),
            vision_config=transformers.PixtralVisionConfig(**{**_VISION, "patch_size": 16}),
            image_token_index=_IMG,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        ),
        unit=16,
    ),
    "lightonocr": Case(
        model=OfTransformers(
            transformers.LightOnOcrConfig(
                text_config=transformers.Qwen3Config(
                    **{**QWEN_TEXT, "rms_norm_eps": 1e-5}, head_dim=12, rope_parameters=_ANGLES
                ),
                vision_config=transformers.PixtralVisionConfig(**{**_VISION, "image_size": 168}),
                image_token_id=403,
                spatial_merge_size=2,
                tie_word_embeddings=False,
            ),
            published={"architectures": ["LightOnOCRForConditionalGeneration"]},
        ),
        tokenizer=partial(make_qwen_bpe, plain=("<|image_pad|>",)),
        processor=_processor(28, longest=196),
        media=(picture(196, 112, 1), picture(224, 392, 2)),
        inputs=_inputs,
        in_prompt="<|im_start|><|image_pad|><|im_end|>",
        placeholders=(403,),
    ),
}
