"""BitNet b1.58 with the activation of llama.cpp's graph; the published 2B-4T has another one."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family

FAMILIES = {
    "bitnet": Family(
        transformers.BitNetConfig(
            **COMMON,
            vocab_size=448,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=88,
            hidden_act="silu",
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 77000.0},
            bos_token_id=442,
            eos_token_id=443,
            pad_token_id=0,
        ),
        make_llama3_bpe,
        published={"dtype": None, "torch_dtype": "bfloat16"},
    ),
}
