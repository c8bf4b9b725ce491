"""gpt-oss: sinks, biases everywhere, windows in every other layer, gate and up rows in turn."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import COMMON, Family

YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    # Of eight frequencies four are blended and four divided. With this base, (201 / 2 pi)^2, the
    # range of blending is 0 to 4 whether or not its ends are made whole: llama.cpp does so always,
    # gpt-oss never.
    "original_max_position_embeddings": 201,
    "rope_type": "yarn",
    "truncate": False,
}

FAMILIES = {
    "gpt-oss": Family(
        transformers.GptOssConfig(
            **COMMON,
            vocab_size=416,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=20,
            num_local_experts=5,
            num_experts_per_tok=3,
            sliding_window=6,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_theta": 1023.37, **YARN},
        ),
        make_qwen_bpe,
        draw=1,
    ),
}
