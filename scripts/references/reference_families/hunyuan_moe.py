"""Hunyuan A13B."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import COMMON, Family

_ROPE: dict[str, Any] = {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}

FAMILIES = {
    "hunyuan-moe": Family(
        transformers.HunYuanMoEV1Config(
            **COMMON,
            vocab_size=416,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=20,
            intermediate_size=24,
            num_experts=7,
            moe_topk=3,
            tie_word_embeddings=True,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, **_ROPE},
        ),
        make_qwen_bpe,
        published={
            "attention_head_dim": 20,
            "dtype": None,
            "moe_intermediate_size": [24, 24, 24],
            "moe_topk": [3, 3, 3],
            "num_shared_expert": [1, 1, 1],
            "norm_topk_prob": True,
            "rope_parameters": None,
            "rope_scaling": {
                **_ROPE,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
            "use_cla": False,
            "use_mixed_mlp_moe": True,
            "use_qk_norm": True,
        },
    ),
}
