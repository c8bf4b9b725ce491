"""GLM-4, GLM-OCR, GLM-4-MoE and Solar Open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from reference_tokenizers import Encode, make_qwen_bpe

from reference_families import COMMON, Family

_COMMON: dict[str, Any] = {
    **COMMON,
    "vocab_size": 416,
    "bos_token_id": 400,
    "eos_token_id": [400, 402],
    "pad_token_id": 400,
}
_PUBLISHED: dict[str, Any] = {
    "dtype": None,
    "partial_rotary_factor": 0.5,
    "rope_parameters": None,
    "torch_dtype": "bfloat16",
}


_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 8,
    "num_heads": 1,
    "image_size": 28,
    "intermediate_size": 8,
    "out_hidden_size": 32,
}
_IMAGES: dict[str, Any] = {
    "image_token_id": 408,
    "video_token_id": 409,
    "image_start_token_id": 410,
    "image_end_token_id": 411,
    "video_start_token_id": 412,
    "video_end_token_id": 413,
}


def _sections(*pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [*pairs],
    }


def _tokenizer(folder: Path) -> Encode:
    return make_qwen_bpe(folder, ("[gMASK]", "<sop>", "<|user|>", "<|observation|>"))


FAMILIES = {
    "glm": Family(
        transformers.GlmConfig(
            **_COMMON,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=88,
        ),
        _tokenizer,
        published={**_PUBLISHED, "rope_theta": 10000.0},
    ),
    "glm4": Family(
        transformers.Glm4Config(
            **_COMMON,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=20,
            intermediate_size=72,
            partial_rotary_factor=0.6,
        ),
        _tokenizer,
        published={**_PUBLISHED, "partial_rotary_factor": 0.6, "rope_theta": 10000.0},
    ),
    "glm4moe": Family(
        transformers.Glm4MoeConfig(
            **_COMMON,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=20,
            intermediate_size=72,
            moe_intermediate_size=24,
            n_routed_experts=6,
            num_experts_per_tok=2,
            n_shared_experts=2,
            routed_scaling_factor=1.7,
            norm_topk_prob=True,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            attention_bias=True,
            use_qk_norm=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.5,
            },
        ),
        _tokenizer,
        published={**_PUBLISHED, "rope_scaling": None, "rope_theta": 1000000.0},
    ),
    "glm4moelite": Family(
        transformers.Glm4MoeLiteConfig(
            # The epsilon of latent norms in transformers.
            **{**_COMMON, "rms_norm_eps": 1e-6},
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            intermediate_size=72,
            moe_intermediate_size=24,
            n_routed_experts=5,
            num_experts_per_tok=2,
            n_shared_experts=1,
            routed_scaling_factor=1.8,
            norm_topk_prob=True,
            kv_lora_rank=20,
            q_lora_rank=28,
            qk_nope_head_dim=12,
            qk_rope_head_dim=8,
            v_head_dim=16,
            mlp_layer_types=["dense", "sparse", "sparse"],
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        _tokenizer,
    ),
    "glm4v": Family(
        transformers.Glm4vConfig(
            text_config={
                **_COMMON,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 72,
                "attention_bias": True,
                "rope_parameters": _sections(1, 1, 2),
            },
            vision_config=_VISION,
            tie_word_embeddings=False,
            **_IMAGES,
        ),
        _tokenizer,
    ),
    "glm-ocr": Family(
        transformers.GlmOcrConfig(
            text_config={
                **_COMMON,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "head_dim": 20,
                "intermediate_size": 72,
                "rope_parameters": {**_sections(3, 2, 1), "partial_rotary_factor": 0.6},
            },
            vision_config=_VISION,
            tie_word_embeddings=False,
            **_IMAGES,
        ),
        _tokenizer,
    ),
    "glm4vmoe": Family(
        transformers.Glm4vMoeConfig(
            text_config={
                **_COMMON,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 72,
                "moe_intermediate_size": 24,
                "n_routed_experts": 7,
                "num_experts_per_tok": 3,
                "n_shared_experts": 2,
                "routed_scaling_factor": 1.7,
                "n_group": 1,
                "topk_group": 1,
                "attention_bias": True,
                "rope_parameters": _sections(2, 1, 1),
            },
            vision_config=_VISION,
            tie_word_embeddings=False,
            **_IMAGES,
        ),
        _tokenizer,
    ),
    "solar-open": Family(
        transformers.SolarOpenConfig(
            **_COMMON,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=20,
            moe_intermediate_size=24,
            n_routed_experts=7,
            num_experts_per_tok=3,
            n_shared_experts=1,
            routed_scaling_factor=1.6,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 256,
            },
        ),
        _tokenizer,
        published={
            "dtype": None,
            "first_k_dense_replace": 0,
            "intermediate_size": 72,
            "partial_rotary_factor": 1.0,
            "rope_parameters": None,
            "rope_scaling": {
                "type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 256,
            },
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
        },
    ),
}
