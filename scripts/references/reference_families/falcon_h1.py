"""Falcon-H1: attention beside Mamba 2, with multipliers far from one."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family

_SHAPE: dict[str, Any] = {
    **COMMON,
    "vocab_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 88,
    "mamba_d_ssm": 48,
    "mamba_n_heads": 6,
    "mamba_d_head": 8,
    "mamba_n_groups": 3,
    "mamba_d_state": 7,
    "mamba_d_conv": 3,
    "bos_token_id": 442,
    "eos_token_id": 443,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 77000.0},
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.7,
    "embedding_multiplier": 5.6,
    "key_multiplier": 0.4,
    "lm_head_multiplier": 0.6,
    "mlp_multipliers": [0.8, 0.5],
    "ssm_in_multiplier": 1.4,
    "ssm_multipliers": [0.6, 1.7, 0.5, 1.9, 0.8],
    "ssm_out_multiplier": 0.9,
}
_PUBLISHED: dict[str, Any] = {
    "dtype": None,
    "torch_dtype": "bfloat16",
    "rope_parameters": None,
    "rope_theta": 77000.0,
}

FAMILIES = {
    "falcon-h1": Family(
        transformers.FalconH1Config(**_SHAPE), make_llama3_bpe, published=_PUBLISHED
    ),
    # With a norm in Mamba, and an embedding that is the output matrix with another multiplier.
    "falcon-h1-tied": Family(
        transformers.FalconH1Config(
            **_SHAPE, mamba_rms_norm=True, mamba_norm_before_gate=False, tie_word_embeddings=True
        ),
        make_llama3_bpe,
        published=_PUBLISHED,
    ),
}
