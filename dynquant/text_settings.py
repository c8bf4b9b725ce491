"""The settings of a larger model's language model in config.json: their place, and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

PLACES = (
    "text_config",
    "language_config",
    "llm_config",
    "lm_config",
    "thinker_config.text_config",
)
"""Objects with these settings, as models that see, hear or speak name them."""


DEFAULTS: dict[str, dict[str, Any]] = {
    "lfm2": {
        "hidden_size": 2560,
        "max_position_embeddings": 128000,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
    },
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rms_norm_eps": 1e-6,
        "vocab_size": 32000,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "vocab_size": 32000,
    },
    "mistral4": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 1048576,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "rms_norm_eps": 1e-6,
        "vocab_size": 131072,
    },
    "muse_glimmer_text": {
        "hidden_size": 6656,
        "intermediate_size": 19968,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 52,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 202048,
    },
    "qwen2": {
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "vocab_size": 151936,
    },
}
"""Defaults of transformers' classes by `model_type`: a larger model states only other values."""


def text_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of a larger model's language model; None if they are no object."""
    for place in PLACES:
        found: Any = config
        for name in place.split("."):
            found = (
                cast("Mapping[str, Any]", found).get(name) if isinstance(found, Mapping) else None
            )
        if isinstance(found, dict) and found:
            return cast("dict[str, Any]", found)
    return None
