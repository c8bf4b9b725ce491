"""OLMo 2, OLMo 3 and OLMoE."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family

PUBLISHED = {
    "dtype": None,
    "rope_parameters": None,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
YARN = {
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "rope_type": "yarn",
}
DENSE = {
    **COMMON,
    "vocab_size": 448,
    "num_attention_heads": 4,
    "intermediate_size": 88,
    "bos_token_id": None,
    "eos_token_id": 443,
    "pad_token_id": 442,
}

FAMILIES = {
    "olmo2": Family(
        transformers.Olmo2Config(
            **DENSE,
            num_hidden_layers=2,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        ),
        make_llama3_bpe,
        published={**PUBLISHED, "rope_scaling": None},
    ),
    "olmo3": Family(
        transformers.Olmo3Config(
            **DENSE,
            num_hidden_layers=4,
            num_key_value_heads=1,
            # Shorter than the longest prompts, which have 24 tokens.
            sliding_window=7,
            rope_scaling=YARN,
            rope_theta=500000.0,
        ),
        make_llama3_bpe,
        published={**PUBLISHED, "rope_scaling": YARN},
    ),
    "olmoe": Family(
        transformers.OlmoeConfig(
            **{**DENSE, "intermediate_size": 40},
            num_hidden_layers=2,
            num_key_value_heads=4,
            num_experts=5,
            num_experts_per_tok=4,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        make_llama3_bpe,
        published={**PUBLISHED, "rope_theta": 10000.0, "clip_qkv": None},
    ),
}
