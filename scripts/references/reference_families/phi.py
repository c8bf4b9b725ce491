"""Phi-3, Phi-4 and Phi-4-mini.

llama.cpp uses the long factors if its context, 512 tokens in the tests, is longer than the original
length; transformers uses them if the prompt is longer. The original length of Phi-3 here is shorter
than both, that of Phi-4-mini is longer than both.
"""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe, make_sentencepiece

from reference_families import COMMON, Family

PUBLISHED = {
    "dtype": None,
    "partial_rotary_factor": None,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
LONG = {
    "long_factor": [1.1, 2.3, 5.9, 17.0],
    "short_factor": [1.0, 1.2, 1.7, 2.9],
    "type": "longrope",
}
LONGER = {
    "long_factor": [1.1, 2.3, 5.9],
    "short_factor": [1.3, 1.6, 2.9],
    "type": "longrope",
}


def shape(**changes: object) -> dict[str, object]:
    """Return the common settings with those of one model."""
    return {
        **COMMON,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 72,
        "pad_token_id": None,
        **changes,
    }


FAMILIES = {
    "phi3": Family(
        transformers.Phi3Config(
            **shape(
                vocab_size=400,
                bos_token_id=1,
                eos_token_id=2,
                num_key_value_heads=4,
                # Longer than the prompts: llama.cpp ignores the window.
                sliding_window=40,
                original_max_position_embeddings=6,
                rope_scaling=dict(LONG),
            )
        ),
        # llama.cpp requires this token if the model's name contains Phi-3.
        lambda folder: make_sentencepiece(folder, 400, ["<|endoftext|>"]),
        published={
            **PUBLISHED,
            "original_max_position_embeddings": 6,
            "rope_scaling": LONG,
        },
    ),
    "phi4": Family(
        transformers.Phi3Config(
            **shape(
                vocab_size=448,
                bos_token_id=442,
                eos_token_id=443,
                num_key_value_heads=1,
                original_max_position_embeddings=512,
                rope_parameters={"rope_type": "default", "rope_theta": 250000.0},
            )
        ),
        make_llama3_bpe,
        published={
            **PUBLISHED,
            "original_max_position_embeddings": 512,
            "rope_theta": 250000.0,
        },
    ),
    "phi4-mini": Family(
        transformers.Phi3Config(
            **shape(
                vocab_size=448,
                bos_token_id=442,
                eos_token_id=443,
                max_position_embeddings=4096,
                original_max_position_embeddings=512,
                partial_rotary_factor=0.75,
                rope_scaling=dict(LONGER),
                sliding_window=262144,
                tie_word_embeddings=True,
            )
        ),
        make_llama3_bpe,
        published={
            **PUBLISHED,
            "original_max_position_embeddings": 512,
            "partial_rotary_factor": 0.75,
            "rope_scaling": LONGER,
        },
    ),
}
