"""Youtu-LLM: latent attention and dense layers."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family
from reference_families.deepseek import ATTENTION, published, yarn

FAMILIES = {
    "youtu": Family(
        transformers.YoutuConfig(
            **COMMON | {"rms_norm_eps": 1e-6},
            **ATTENTION,
            vocab_size=448,
            num_hidden_layers=2,
            q_lora_rank=20,
            bos_token_id=442,
            eos_token_id=443,
            tie_word_embeddings=True,
            rope_parameters={"rope_theta": 10000, **yarn(1.0)},
        ),
        make_llama3_bpe,
        published=published(1.0, rope_interleave=True),
    ),
}
