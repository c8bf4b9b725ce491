"""ERNIE 4.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from reference_tokenizers import Encode, make_sentencepiece

from reference_families import COMMON, Family

_COMMON: dict[str, Any] = {
    **COMMON,
    "vocab_size": 400,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
_PUBLISHED: dict[str, Any] = {
    "dtype": None,
    "rope_parameters": None,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}


def _tokenizer(folder: Path) -> Encode:
    return make_sentencepiece(folder, 400, ["<|im_start|>", "<|im_end|>"])


FAMILIES = {
    "ernie4.5": Family(
        transformers.Ernie4_5Config(
            **_COMMON,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=20,
            intermediate_size=72,
            tie_word_embeddings=True,
        ),
        _tokenizer,
        published={**_PUBLISHED, "compression_ratio": 1.0},
    ),
    "ernie4.5moe": Family(
        transformers.Ernie4_5_MoeConfig(
            **_COMMON,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=72,
            moe_intermediate_size=20,
            moe_k=3,
            moe_num_experts=7,
            moe_num_shared_experts=2,
            moe_layer_start_index=1,
            tie_word_embeddings=False,
        ),
        _tokenizer,
        published={
            **_PUBLISHED,
            "moe_capacity": [64, 64, 64],
            "moe_use_aux_free": True,
            "num_nextn_predict_layers": 1,
        },
    ),
}
