"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, with tiny vision models."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import COMMON, Family

_TEXT: dict[str, Any] = {
    **COMMON,
    "vocab_size": 416,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 400,
    "eos_token_id": 402,
}
_TOKENS: dict[str, Any] = {
    "image_token_id": 410,
    "video_token_id": 411,
    "vision_start_token_id": 412,
    "vision_end_token_id": 413,
}


def _rope(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [*sections]}


def _without_epsilon(model: transformers.PreTrainedModel) -> None:
    """Compute norms as llama.cpp's qwen2vl does, which does not read their epsilon."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0


FAMILIES = {
    "qwen2vl": Family(
        transformers.Qwen2VLConfig(
            text_config={
                **_TEXT,
                "num_hidden_layers": 3,
                "intermediate_size": 88,
                "rope_parameters": _rope(1, 2, 1),
            },
            vision_config={"depth": 1, "embed_dim": 8, "hidden_size": 32, "num_heads": 1},
            tie_word_embeddings=True,
            **_TOKENS,
        ),
        make_qwen_bpe,
        adapt=_without_epsilon,
    ),
    "qwen2.5vl": Family(
        transformers.Qwen2_5_VLConfig(
            text_config={
                **_TEXT,
                "num_hidden_layers": 2,
                "intermediate_size": 72,
                "rope_parameters": _rope(2, 1, 1),
            },
            vision_config={
                "depth": 1,
                "hidden_size": 8,
                "out_hidden_size": 32,
                "num_heads": 1,
                "intermediate_size": 8,
                "fullatt_block_indexes": [0],
            },
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        make_qwen_bpe,
        adapt=_without_epsilon,
        # As published: one set of settings for both models.
        published={
            **_TEXT,
            "text_config": None,
            "num_hidden_layers": 2,
            "intermediate_size": 72,
            "max_window_layers": 28,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
            "rope_theta": 1000000.0,
            "sliding_window": 64,
            "use_sliding_window": False,
            "vision_token_id": 414,
        },
    ),
    "qwen3vl": Family(
        transformers.Qwen3VLConfig(
            text_config={
                **_TEXT,
                "num_attention_heads": 6,
                "num_key_value_heads": 3,
                "head_dim": 24,
                "num_hidden_layers": 3,
                "intermediate_size": 72,
                "rope_parameters": _rope(5, 4, 3),
            },
            vision_config={
                "depth": 2,
                "hidden_size": 8,
                "out_hidden_size": 32,
                "num_heads": 1,
                "intermediate_size": 8,
                "num_position_embeddings": 4,
                "deepstack_visual_indexes": [0, 1],
            },
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        lambda folder: make_qwen_bpe(folder, ("<think>", "</think>")),
    ),
}
