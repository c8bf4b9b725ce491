"""DeepSeek: latent attention, experts in groups, YaRN."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_llama3_bpe, make_qwen_bpe

from reference_families import COMMON, Family


def yarn(magnitude: float) -> dict[str, Any]:
    """Return YaRN settings as published, for a shorter context.

    It takes effect within the prompts' 24 tokens: of six frequencies one stays, one is blended, and
    four are divided.
    """
    return {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": magnitude,
        "mscale_all_dim": magnitude,
        "original_max_position_embeddings": 64,
        "type": "yarn",
    }


# Heads of 22 + 12 weights for scores and 14 for values. q_b, kv_b and the dense layers have more
# than 128 rows, but not a multiple of 128, so that some FP8 blocks of 128 are partial.
ATTENTION = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 28,
    "qk_nope_head_dim": 22,
    "qk_rope_head_dim": 12,
    "v_head_dim": 14,
    "intermediate_size": 136,
}


def published(magnitude: float, **keys: Any) -> dict[str, Any]:
    """Return the changes to the config.json that transformers writes."""
    return {
        "dtype": None,
        "head_dim": None,
        "qk_head_dim": None,
        "rope_parameters": None,
        "rope_theta": 10000,
        "rope_scaling": yarn(magnitude),
        "torch_dtype": "bfloat16",
        **keys,
    }


# Kimi-K2 blends from one full turn on; llama.cpp ignores the keys and blends from 32 turns on. With
# this length and base the result is the same: of three frequencies the last is divided.
KIMI_YARN = {
    **yarn(1.0),
    "beta_fast": 1.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 7938,
}

FAMILIES = {
    "deepseek-v3": Family(
        transformers.DeepseekV3Config(
            **COMMON | {"rms_norm_eps": 1e-6},
            **ATTENTION,
            vocab_size=448,
            num_hidden_layers=3,
            q_lora_rank=20,
            first_k_dense_replace=1,
            moe_intermediate_size=16,
            n_routed_experts=9,
            n_shared_experts=1,
            num_experts_per_tok=4,
            n_group=3,
            topk_group=2,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            bos_token_id=442,
            eos_token_id=443,
            rope_parameters={"rope_theta": 10000, **yarn(1.0)},
        ),
        make_llama3_bpe,
        published=published(1.0, num_nextn_predict_layers=1),
        draw=9,
    ),
    "deepseek-v2-lite": Family(
        transformers.DeepseekV2Config(
            **COMMON | {"rms_norm_eps": 1e-6},
            **ATTENTION,
            vocab_size=416,
            num_hidden_layers=3,
            q_lora_rank=None,
            first_k_dense_replace=1,
            moe_intermediate_size=20,
            n_routed_experts=5,
            n_shared_experts=2,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            topk_method="greedy",
            routed_scaling_factor=1.0,
            norm_topk_prob=False,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_theta": 10000, **yarn(0.707)},
        ),
        make_qwen_bpe,
        published=published(0.707, scoring_func="softmax"),
    ),
    "deepseek-v2": Family(
        transformers.DeepseekV2Config(
            **COMMON | {"rms_norm_eps": 1e-6},
            **ATTENTION,
            vocab_size=416,
            num_hidden_layers=2,
            q_lora_rank=20,
            first_k_dense_replace=1,
            moe_intermediate_size=24,
            n_routed_experts=6,
            n_shared_experts=2,
            num_experts_per_tok=2,
            n_group=3,
            # All groups are used: llama.cpp ranks groups by two experts, DeepSeek-V2 by the best.
            topk_group=3,
            topk_method="group_limited_greedy",
            routed_scaling_factor=4.0,
            norm_topk_prob=False,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_theta": 10000, **yarn(0.707)},
        ),
        make_qwen_bpe,
        published=published(0.707, scoring_func="softmax"),
        draw=2,
    ),
    "kimi-k2": Family(
        transformers.DeepseekV3Config(
            **COMMON,
            **ATTENTION | {"qk_rope_head_dim": 6},
            vocab_size=416,
            num_hidden_layers=2,
            q_lora_rank=20,
            first_k_dense_replace=1,
            moe_intermediate_size=24,
            n_routed_experts=6,
            n_shared_experts=1,
            num_experts_per_tok=3,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=2.827,
            norm_topk_prob=True,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_theta": 50000.0, **KIMI_YARN},
        ),
        make_qwen_bpe,
        published=published(1.0)
        | {
            "num_nextn_predict_layers": 0,
            "rope_scaling": KIMI_YARN,
            "rope_theta": 50000.0,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
        draw=1,
    ),
}
