"""Models with only state space layers: Mamba, Falcon-Mamba, Mamba 2."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_llama3_bpe, make_qwen_bpe

from reference_families import Family

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "bos_token_id": 400,
    "eos_token_id": 402,
    "pad_token_id": 400,
    "conv_kernel": 3,
}
_PUBLISHED: dict[str, Any] = {"dtype": None, "torch_dtype": "bfloat16"}

FAMILIES = {
    "mamba": Family(
        transformers.MambaConfig(**_SHAPE, vocab_size=416, state_size=7, time_step_rank=5),
        make_qwen_bpe,
        published=_PUBLISHED,
    ),
    # Published with another epsilon in the norms of time steps, for which llama.cpp has no key.
    "falcon-mamba": Family(
        transformers.FalconMambaConfig(
            **_SHAPE, vocab_size=416, state_size=7, mixer_rms_eps=1e-5, tie_word_embeddings=False
        ),
        make_qwen_bpe,
        published=_PUBLISHED,
    ),
    "mamba2": Family(
        transformers.Mamba2Config(
            **_SHAPE, vocab_size=448, state_size=7, num_heads=4, head_dim=16, n_groups=2
        ),
        make_llama3_bpe,
        published={
            **_PUBLISHED,
            "bos_token_id": 442,
            "eos_token_id": 443,
            "pad_token_id": 0,
            "time_step_limit": [0.0, float("inf")],
        },
    ),
}
