"""Granite, dense and with experts; all multipliers are far from one."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family

MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.5,
    "logits_scaling": 0.5,
}
SHAPE = {
    **COMMON,
    **MULTIPLIERS,
    "vocab_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 443,
    "eos_token_id": 443,
    "pad_token_id": 443,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
}
PUBLISHED = {
    "dtype": None,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "torch_dtype": "bfloat16",
}
EXPERTS = {"intermediate_size": 40, "num_local_experts": 5, "num_experts_per_tok": 4}
HYBRID = {
    **SHAPE,
    "layer_types": ["full_attention", "full_attention"],
    "position_embedding_type": "rope",
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
}
MAMBA = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 7,
    "mamba_d_conv": 3,
}
ATTENTION = {"layer_types": ["attention", "attention"], "normalization_function": "rmsnorm"}
MIXED = {"layer_types": ["mamba", "attention", "mamba"], "normalization_function": "rmsnorm"}

FAMILIES = {
    "granite": Family(
        transformers.GraniteConfig(
            **SHAPE, intermediate_size=88, attention_bias=True, mlp_bias=True
        ),
        make_llama3_bpe,
        published=PUBLISHED,
    ),
    "granitemoe": Family(
        transformers.GraniteMoeConfig(**SHAPE, **EXPERTS), make_llama3_bpe, published=PUBLISHED
    ),
    # Granite 4 without Mamba layers: dense, and with experts.
    "granite4": Family(
        transformers.GraniteMoeHybridConfig(
            **HYBRID, num_local_experts=0, shared_intermediate_size=88
        ),
        make_llama3_bpe,
        published=PUBLISHED | ATTENTION,
    ),
    "granite4moe": Family(
        transformers.GraniteMoeHybridConfig(**HYBRID, **EXPERTS, shared_intermediate_size=24),
        make_llama3_bpe,
        published=PUBLISHED | ATTENTION,
    ),
    # With Mamba layers, as published: dense without rotary embeddings.
    "granite4h": Family(
        transformers.GraniteMoeHybridConfig(
            **HYBRID | MAMBA | {"position_embedding_type": "nope"},
            num_local_experts=0,
            shared_intermediate_size=88,
        ),
        make_llama3_bpe,
        published=PUBLISHED | MIXED,
    ),
    "granite4hmoe": Family(
        transformers.GraniteMoeHybridConfig(
            **HYBRID | MAMBA | EXPERTS, shared_intermediate_size=24
        ),
        make_llama3_bpe,
        published=PUBLISHED | MIXED,
    ),
    "granitemoeshared": Family(
        transformers.GraniteMoeSharedConfig(**SHAPE, **EXPERTS, shared_intermediate_size=24),
        make_llama3_bpe,
        published=PUBLISHED,
    ),
}
