"""Qwen3.5 and Qwen3.8-Flash-Next: as language models and in models that see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from reference_tokenizers import QWEN35_SPLIT, Encode, make_qwen_bpe

from reference_families import COMMON, Family


def _tokenizer(folder: Path) -> Encode:
    return make_qwen_bpe(folder, ("<think>", "</think>"), QWEN35_SPLIT)


TEXT: dict[str, Any] = {
    # The constant epsilon of query and key norms of linear attention in transformers.
    **{**COMMON, "rms_norm_eps": 1e-6},
    "vocab_size": 416,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "bos_token_id": 400,
    "eos_token_id": 402,
}
_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 8,
    "out_hidden_size": 32,
    "num_heads": 1,
    "intermediate_size": 8,
    "num_position_embeddings": 4,
}
_TOKENS: dict[str, Any] = {
    "image_token_id": 410,
    "video_token_id": 411,
    "vision_start_token_id": 412,
    "vision_end_token_id": 413,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_experts": 5,
    "num_experts_per_tok": 4,
}


def _rope(*sections: int, part: float = 0.25) -> dict[str, Any]:
    return {
        "rope_type": "default",
        "rope_theta": 10000000.0,
        "partial_rotary_factor": part,
        "mrope_section": [*sections],
        "mrope_interleaved": True,
    }


_HASHED: dict[str, Any] = {
    **TEXT,
    **_EXPERTS,
    "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
    "output_gate_type": "sigmoid",
    "hc_count": 3,
    "hc_lowrank": 10,
    "ple_layer_ids": [3],
    "ple_conv_kernel_size": 3,
    "ngram_size": 3,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 23,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 7,
    "indexer_n_heads": 5,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 20,
    "indexer_budget": 6,
    "indexer_compress_ratio": 3,
}

FAMILIES = {
    "qwen35": Family(
        transformers.Qwen3_5Config(
            text_config={
                **TEXT,
                "intermediate_size": 72,
                "rope_parameters": _rope(2, 2, 2, part=0.5),
            },
            vision_config=_VISION,
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        _tokenizer,
    ),
    "qwen35-text": Family(
        transformers.Qwen3_5TextConfig(
            **TEXT, intermediate_size=72, tie_word_embeddings=True, rope_parameters=_rope(1, 1, 1)
        ),
        _tokenizer,
        published={
            "attn_output_gate": True,
            "full_attention_interval": 2,
            "layer_types": None,
            "mamba_ssm_dtype": "float32",
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "output_gate_type": "swish",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "mrope_section": [1, 1, 1],
            },
        },
    ),
    "qwen35moe": Family(
        transformers.Qwen3_5MoeConfig(
            text_config={**TEXT, **_EXPERTS, "rope_parameters": _rope(1, 1, 1)},
            vision_config=_VISION,
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        _tokenizer,
        stacks=True,
        draw=2,
    ),
    "qwen35moe-text": Family(
        transformers.Qwen3_5MoeTextConfig(**TEXT, **_EXPERTS, rope_parameters=_rope(1, 1, 1)),
        _tokenizer,
    ),
    "qwen38-flash-next": Family(
        transformers.Qwen4ExpConfig(
            text_config={**_HASHED, "rope_parameters": _rope(2, 2, 2, part=0.5)},
            vision_config={**_VISION, "patch_size": 4},
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        _tokenizer,
        stacks=True,
    ),
    "qwen38-flash-next-text": Family(
        transformers.Qwen4ExpTextConfig(**_HASHED, rope_parameters=_rope(1, 1, 1)),
        _tokenizer,
        published={
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "eos_token_id": [402, 400],
        },
    ),
}
