"""Command-R, Command-R+ with its norms on Q and K, and Command-R7B.

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
