"""Sarvam's mixture of experts: Ling 2.0's layers, without groups of experts."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import COMMON, Family

FAMILIES = {
    "sarvam-moe": Family(
        transformers.SarvamMoEConfig(
            **COMMON | {"rms_norm_eps": 1e-6},
            vocab_size=416,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=72,
            moe_intermediate_size=20,
            n_routed_experts=5,
            num_experts_per_tok=3,
            n_shared_experts=1,
            first_k_dense_replace=1,
            routed_scaling_factor=2.5,
            eos_token_id=402,
            pad_token_id=400,
        ),
        make_qwen_bpe,
        published={
            "architectures": ["SarvamMoEForCausalLM"],
            "attention_bias": None,
            "dtype": None,
            "moe_router_enable_expert_bias": True,
            "n_routed_experts": None,
            "n_shared_experts": None,
            "num_experts": 5,
            "num_shared_experts": 1,
            "partial_rotary_factor": None,
            "rope_parameters": None,
            "rope_scaling": None,
            "rope_theta": 8000000.0,
            "score_function": "sigmoid",
            "torch_dtype": "bfloat16",
            "use_bias": False,
            "use_qkv_bias": False,
        },
    ),
}
