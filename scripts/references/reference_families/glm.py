"""GLM-4 and GLM-4-MoE."""

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
}
