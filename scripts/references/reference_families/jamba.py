"""Jamba: the first Mamba, attention without positions, and experts in every second layer."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_sentencepiece

from reference_families import COMMON, Family

FAMILIES = {
    "jamba": Family(
        transformers.JambaConfig(
            **COMMON,
            vocab_size=448,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=40,
            num_experts=4,
            num_experts_per_tok=3,
            attn_layer_period=3,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=7,
            mamba_d_conv=3,
            mamba_dt_rank=6,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        lambda folder: make_sentencepiece(folder, 448, []),
        spread=0.5,
        draw=1,
        published={"dtype": None, "torch_dtype": "bfloat16"},
    ),
}
