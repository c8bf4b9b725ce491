"""Bamba: Mamba 2 and attention that rotates half of each head, MLPs with biases."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family

FAMILIES = {
    "bamba": Family(
        transformers.BambaConfig(
            **COMMON,
            vocab_size=448,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=88,
            attn_layer_indices=[1, 3],
            mlp_bias=True,
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_n_groups=2,
            mamba_d_state=7,
            mamba_d_conv=3,
            bos_token_id=442,
            eos_token_id=443,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 77000.0},
        ),
        make_llama3_bpe,
        published={
            "dtype": None,
            "torch_dtype": "bfloat16",
            "rope_parameters": None,
            "rope_theta": 77000.0,
            "partial_rotary_factor": 0.5,
            "attn_rotary_emb": 8,
        },
    ),
}
