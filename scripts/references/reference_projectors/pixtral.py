"""Mistral 3, Pixtral and LightOnOCR with a tiny Pixtral encoder, and a mark after each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from reference_tokenizers import Encode, make_llama3_bpe, make_qwen_bpe

from reference_projectors import Case, Inputs, Media, picture, with_marks

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "vocab_size": 456,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_hidden_layers": 3,
    "intermediate_size": 72,
    "bos_token_id": 442,
    "eos_token_id": 447,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 1540,
    "patch_size": 14,
    "hidden_act": "silu",
}
_IMG, _BREAK, _END = 448, 449, 450


def _tokenizer(folder: Path) -> Encode:
    return with_marks(make_llama3_bpe, "[IMG]", "[IMG_BREAK]", "[IMG_END]")(folder)


def _qwen(folder: Path) -> Encode:
    return make_qwen_bpe(folder, ("<|image_pad|>",))


def _processor(unit: int) -> dict[str, Any]:
    return {
        "image_processor_type": "PixtralImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": {"height": unit, "width": unit},
        "size": {"longest_edge": 1540},
        "resample": 3,
    }


def _inputs(folder: Path, one: Media) -> Inputs:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = processor(images=[Image.fromarray(one)], return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "image_sizes")}


def _n_across(inputs: Inputs, unit: int) -> int:
    return int(inputs["image_sizes"][0, 1]) // unit


def _features(unit: int) -> Any:
    """Return what gives the embeddings, with that of the mark between two rows."""

    def features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
        found = model.get_image_features(**inputs).pooler_output[0]
        mark = model.get_input_embeddings()(torch.tensor([_BREAK]))
        rows = found.split(_n_across(inputs, unit))
        return torch.cat([part for row in rows for part in (row, mark)][:-1])

    return features


def _ids(unit: int) -> Any:
    """Return what gives the ids of a picture's tokens, with marks between two rows."""

    def ids(inputs: Inputs, features: torch.Tensor) -> list[int]:
        each = _n_across(inputs, unit) + 1
        return [_BREAK if i % each == each - 1 else _IMG for i in range(len(features))]

    return ids


def _case(config: transformers.PretrainedConfig, unit: int, **changes: Any) -> Case:
    # llama.cpp takes at least 8 tokens. It enlarges the second picture as the processor does; of
    # most other sizes it pads what the processor stretches.
    less = unit - unit // 14
    return Case(
        config,
        _tokenizer,
        _processor(unit),
        (picture(5 * unit, 3 * unit, 1), picture(3 * less, 7 * less, 2)),
        _inputs,
        _features(unit),
        "The whale",
        "[IMG_END] was white",
        "The whale<__media__> was white",
        _IMG,
        ids=_ids(unit),
        **changes,
    )


CASES = {
    "mistral3": _case(
        transformers.Mistral3Config(
            text_config=transformers.MistralConfig(
                **_TEXT,
                sliding_window=None,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            ),
            vision_config=transformers.PixtralVisionConfig(**_VISION),
            image_token_index=_IMG,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        ),
        28,
    ),
    "pixtral": _case(
        transformers.LlavaConfig(
            text_config=transformers.MistralConfig(
                **_TEXT,
                sliding_window=None,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            ),
            vision_config=transformers.PixtralVisionConfig(**{**_VISION, "patch_size": 16}),
            image_token_index=_IMG,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        ),
        16,
    ),
    "lightonocr": Case(
        transformers.LightOnOcrConfig(
            text_config=transformers.Qwen3Config(
                **{**_TEXT, "vocab_size": 416, "bos_token_id": 400, "eos_token_id": 402},
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            ),
            vision_config=transformers.PixtralVisionConfig(**{**_VISION, "image_size": 168}),
            image_token_id=403,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        ),
        _qwen,
        {**_processor(28), "size": {"longest_edge": 196}},
        (picture(196, 112, 1), picture(224, 392, 2)),
        _inputs,
        lambda model, inputs: model.get_image_features(**inputs).pooler_output[0],
        "The whale<|im_start|>",
        "<|im_end|> was white",
        "The whale<__media__> was white",
        403,
        published={"architectures": ["LightOnOCRForConditionalGeneration"]},
    ),
}
