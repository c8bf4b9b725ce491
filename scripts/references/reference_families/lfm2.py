"""LFM2: dense, with experts, and inside a model that sees."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import Family

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "vocab_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "bos_token_id": 443,
    "eos_token_id": 444,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 777000.0},
}
_DENSE: dict[str, Any] = {
    "intermediate_size": 100,
    "block_multiple_of": 7,
    "block_ffn_dim_multiplier": 1.1,
}
_PUBLISHED: dict[str, Any] = {
    "dtype": None,
    "rope_parameters": None,
    "rope_theta": 777000.0,
    "torch_dtype": "bfloat16",
}

FAMILIES = {
    # As LFM2-1.2B: its own names of sizes, and the numbers of the layers with attention.
    "lfm2": Family(
        transformers.Lfm2Config(**_TEXT, **_DENSE, conv_L_cache=3),
        make_llama3_bpe,
        published={
            **_PUBLISHED,
            "block_dim": 32,
            "block_ff_dim": 100,
            "block_norm_eps": 1e-5,
            "conv_dim": 32,
            "full_attn_idxs": [1, 3],
            "intermediate_size": None,
            "layer_types": None,
            "num_heads": 4,
            "tie_embedding": True,
            "tie_word_embeddings": None,
            "use_pos_enc": True,
        },
    ),
    "lfm2moe": Family(
        transformers.Lfm2MoeConfig(
            **_TEXT,
            intermediate_size=72,
            moe_intermediate_size=28,
            num_dense_layers=1,
            num_experts=5,
            num_experts_per_tok=3,
            conv_L_cache=4,
        ),
        make_llama3_bpe,
        published=_PUBLISHED,
    ),
    "lfm2vl": Family(
        transformers.Lfm2VlConfig(
            text_config={
                "architectures": ["Lfm2ForCausalLM"],
                "model_type": "lfm2",
                **_TEXT,
                "intermediate_size": 72,
                "block_auto_adjust_ff_dim": False,
                "tie_word_embeddings": False,
            },
            vision_config={
                "model_type": "siglip2_vision_model",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "num_patches": 4,
                "patch_size": 2,
            },
            projector_hidden_size=8,
            image_token_id=446,
            tie_word_embeddings=False,
        ),
        make_llama3_bpe,
    ),
}
