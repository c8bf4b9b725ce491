"""Gemma 1, 2 and 3, and the multimodal layout of Gemma 3, without the vision model.

Windows are shorter than the prompts, and soft caps low enough to affect the results.
"""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_sentencepiece
from reference_vocabularies import make_gemma_bpe

from reference_families import COMMON, GELU, Family

_WEIGHTS: dict[str, Any] = {**GELU, "norms": 0.0}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GEMMA3: dict[str, Any] = {
    **COMMON,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    # More than the tokenizer has, as in published models.
    "vocab_size": 452,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 72,
    "sliding_window": 7,
}

FAMILIES = {
    "gemma": Family(
        transformers.GemmaConfig(
            **COMMON,
            **_IDS,
            vocab_size=400,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=20,
            intermediate_size=88,
        ),
        lambda folder: make_sentencepiece(folder, 400, []),
        **_WEIGHTS,
        published={
            "dtype": None,
            "hidden_act": "gelu",
            "hidden_activation": None,
            "rope_parameters": None,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
        },
    ),
    "gemma2": Family(
        transformers.Gemma2Config(
            **COMMON,
            **_IDS,
            vocab_size=400,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=20,
            intermediate_size=72,
            query_pre_attn_scalar=13,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=0.7,
            sliding_window=7,
        ),
        lambda folder: make_sentencepiece(folder, 400, []),
        **_WEIGHTS,
        published={
            "dtype": None,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_types": None,
            "rope_parameters": None,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
        },
    ),
    "gemma3": Family(
        transformers.Gemma3TextConfig(
            **_GEMMA3,
            num_hidden_layers=3,
            query_pre_attn_scalar=2,
            final_logit_softcapping=0.7,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        make_gemma_bpe,
        **_WEIGHTS,
    ),
}
