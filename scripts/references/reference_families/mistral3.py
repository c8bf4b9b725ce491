"""Mistral Small 3.1 and Ministral 3, inside the class that also sees."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_sentencepiece

from reference_families import COMMON, Family

_SIZES: dict[str, Any] = {
    **COMMON,
    "vocab_size": 400,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 40,
    "intermediate_size": 104,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _mistral3(text: transformers.PretrainedConfig) -> Family:
    vision = transformers.PixtralVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=8,
        image_size=8,
        patch_size=4,
    )
    return Family(
        transformers.Mistral3Config(
            vision_config=vision,
            text_config=text,
            image_token_index=10,
            tie_word_embeddings=False,
        ),
        lambda folder: make_sentencepiece(folder, 400, ["[INST]", "[/INST]"]),
    )


FAMILIES = {
    "mistral3": _mistral3(
        transformers.MistralConfig(
            **_SIZES,
            sliding_window=None,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        )
    ),
    "ministral3": _mistral3(
        transformers.Ministral3Config(
            **_SIZES,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 16.0,
                # Takes effect within the prompts' 24 tokens.
                "original_max_position_embeddings": 8,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        )
    ),
}
