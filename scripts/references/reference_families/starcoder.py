"""StarCoder2."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import Family

FAMILIES = {
    "starcoder2": Family(
        transformers.Starcoder2Config(
            hidden_size=32,
            max_position_embeddings=512,
            norm_epsilon=1e-5,
            vocab_size=416,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=88,
            bos_token_id=400,
            eos_token_id=400,
            # Longer than the prompts: llama.cpp's graph has no window.
            sliding_window=64,
            rope_parameters={"rope_type": "default", "rope_theta": 999999.4420358813},
        ),
        make_qwen_bpe,
        published={
            "dtype": None,
            "rope_parameters": None,
            "rope_theta": 999999.4420358813,
            "torch_dtype": "bfloat16",
        },
        weights=0.3,
        embedding=0.06,  # see GELU
    ),
}
