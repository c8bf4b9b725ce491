"""Mistral Small 3.1, Ministral 3 and Mistral Small 4, inside the class that also sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from reference_tokenizers import Encode, make_sentencepiece

from reference_families import COMMON, Family
from reference_families.deepseek import ATTENTION

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


def _tokenizer(folder: Path) -> Encode:
    return make_sentencepiece(folder, 400, ["[INST]", "[/INST]"])


_LATENT: dict[str, Any] = {
    **{k: v for k, v in _SIZES.items() if k != "head_dim"},
    **ATTENTION,
    "rms_norm_eps": 1e-6,
    "num_hidden_layers": 3,
    "q_lora_rank": 20,
    "moe_intermediate_size": 24,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.5,
}


def _growing() -> dict[str, Any]:
    """Return a rope with which queries grow within the prompts' 24 tokens."""
    return {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 8,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.3,
    }


def _mistral3(text: transformers.PretrainedConfig, **how: Any) -> Family:
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
        _tokenizer,
        **how,
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
    "mistral4": _mistral3(
        transformers.Mistral4Config(**_LATENT, rope_parameters=_growing()), stacks=True
    ),
    "mistral4-groups": _mistral3(
        transformers.Mistral4Config(
            **{**_LATENT, "q_lora_rank": None},
            n_group=3,
            topk_group=2,
            first_k_dense_replace=1,
            rope_parameters=_growing(),
        )
    ),
}
