"""Laguna: with windows, heads and ropes by layer, and with full attention and a wide gate."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import COMMON, Family

_SHAPE: dict[str, Any] = {
    **COMMON,
    "vocab_size": 416,
    "head_dim": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 72,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_experts": 5,
    "num_experts_per_tok": 3,
    "moe_routed_scaling_factor": 2.5,
    "bos_token_id": 400,
    "eos_token_id": 402,
}

FAMILIES = {
    "laguna": Family(
        transformers.LagunaConfig(
            **_SHAPE,
            num_hidden_layers=4,
            num_attention_heads_per_layer=[4, 6, 6, 4],
            layer_types=["full_attention", "sliding_attention"] * 2,
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
            sliding_window=7,
            gating=True,
            rope_parameters={
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 77000.0,
                    "partial_rotary_factor": 0.5,
                    "factor": 8.0,
                    "original_max_position_embeddings": 16,
                    "attention_factor": 0.9,
                },
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 100.0,
                    "partial_rotary_factor": 1.0,
                },
            },
        ),
        make_qwen_bpe,
        draw=2,
    ),
    "laguna-full": Family(
        transformers.LagunaConfig(
            **_SHAPE,
            num_hidden_layers=3,
            mlp_layer_types=["dense", "dense", "sparse"],
            gating="per-element",
            tie_word_embeddings=True,
        ),
        make_qwen_bpe,
        stacks=True,
        published={"num_attention_heads_per_layer": None},
    ),
}
