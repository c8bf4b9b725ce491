"""Qwen, dense and with experts."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import COMMON, Family

FAMILIES = {
    "qwen2": Family(
        transformers.Qwen2Config(
            **COMMON,
            vocab_size=416,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=88,
            tie_word_embeddings=True,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        make_qwen_bpe,
        published={
            "dtype": None,
            "layer_types": None,
            "rope_parameters": None,
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
        },
    ),
    "qwen3": Family(
        transformers.Qwen3Config(
            **COMMON,
            vocab_size=416,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=24,
            intermediate_size=72,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        lambda folder: make_qwen_bpe(folder, ("<think>", "</think>")),
        shard_size="50KB",
    ),
    "qwen2moe": Family(
        transformers.Qwen2MoeConfig(
            **COMMON,
            vocab_size=416,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=72,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=40,
            num_experts=5,
            num_experts_per_tok=4,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        make_qwen_bpe,
        published={
            "dtype": None,
            "layer_types": None,
            "rope_parameters": None,
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
        },
    ),
    "qwen3moe": Family(
        transformers.Qwen3MoeConfig(
            **COMMON,
            vocab_size=416,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=24,
            intermediate_size=72,
            moe_intermediate_size=24,
            num_experts=5,
            num_experts_per_tok=3,
            norm_topk_prob=True,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        make_qwen_bpe,
    ),
    "qwen3next": Family(
        transformers.Qwen3NextConfig(
            # The constant epsilon of query and key norms of linear attention in transformers.
            **{**COMMON, "rms_norm_eps": 1e-6},
            vocab_size=416,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=24,
            full_attention_interval=2,
            intermediate_size=72,
            linear_conv_kernel_dim=3,
            linear_key_head_dim=12,
            linear_value_head_dim=12,
            linear_num_key_heads=2,
            linear_num_value_heads=6,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=40,
            num_experts=5,
            num_experts_per_tok=4,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_type": "default", "rope_theta": 10000000.0},
        ),
        make_qwen_bpe,
        published={
            "dtype": None,
            "full_attention_interval": 2,
            "layer_types": None,
            "partial_rotary_factor": 0.25,
            "rope_parameters": None,
            "rope_theta": 10000000.0,
            "torch_dtype": "bfloat16",
        },
    ),
}
