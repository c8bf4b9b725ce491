"""Command-R, Command-R+ with its norms on Q and K, Command-R7B and Command-A-plus.

llama.cpp recognises Command-R+ by its 64 layers, so its layers are small here.
"""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import Family

_COMMON: dict[str, Any] = {
    "vocab_size": 448,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "bos_token_id": 442,
    "eos_token_id": 443,
    "pad_token_id": 0,
}
_PUBLISHED: dict[str, Any] = {
    "dtype": None,
    "rope_parameters": None,
    "torch_dtype": "bfloat16",
}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
_EXPERTS: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 24,
    "logit_scale": 1.2,
    "sliding_window": 7,
    "num_experts": 5,
    "num_experts_per_tok": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}

FAMILIES = {
    "command-r": Family(
        transformers.CohereConfig(
            **_COMMON,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=88,
            logit_scale=0.3,
            rope_parameters={"rope_type": "default", "rope_theta": 8000000.0},
        ),
        make_llama3_bpe,
        published={**_PUBLISHED, "model_max_length": 4096, "rope_theta": 8000000.0},
    ),
    "command-r-plus": Family(
        transformers.CohereConfig(
            **_COMMON,
            hidden_size=16,
            num_hidden_layers=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=12,
            logit_scale=2.0,
            use_qk_norm=True,
            rope_parameters={"rope_type": "default", "rope_theta": 75000000.0},
        ),
        make_llama3_bpe,
        published={**_PUBLISHED, "rope_theta": 75000000.0},
    ),
    "cohere2moe": Family(
        transformers.Cohere2MoeConfig(
            **_COMMON,
            **_EXPERTS,
            num_hidden_layers=5,
            num_shared_experts=2,
            expert_selection_fn="sigmoid",
            layer_types=["full_attention", "sliding_attention", *_KINDS],
            mlp_layer_types=["dense", *["sparse"] * 4],
            prefix_dense_intermediate_size=72,
            tie_word_embeddings=False,
        ),
        make_llama3_bpe,
    ),
    "cohere2moe-rms": Family(
        transformers.Cohere2MoeConfig(
            **_COMMON,
            **_EXPERTS,
            num_hidden_layers=4,
            sliding_window_pattern=3,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
        ),
        make_llama3_bpe,
        published={"layer_types": None, "mlp_layer_types": None},
    ),
    "cohere2": Family(
        transformers.Cohere2Config(
            **_COMMON,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=56,
            logit_scale=0.3,
            sliding_window=7,
            sliding_window_pattern=3,
            rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        ),
        make_llama3_bpe,
        published={
            **_PUBLISHED,
            "layer_types": None,
            "rope_theta": 50000.0,
            "rotary_pct": 1.0,
            "sliding_window_pattern": 3,
        },
    ),
}
