"""A language model inside a larger model, which also sees, hears or speaks.

The language model becomes the GGUF. The other parts are left out and reported. Three things differ
from a language model alone, and all three are here or in gather.py: its settings are an object in
config.json, its tensors have a prefix, and there are tensors of other parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.families import Family
from dynquant.arch.model_types import class_of
from dynquant.arch.settings import Declared
from dynquant.errors import ArchitectureError
from dynquant.text_settings import PLACES, text_settings

_SEPARATE = (
    "which llama.cpp reads from a separate file; llama.cpp's `convert_hf_to_gguf.py --mmproj` makes"
    " it if it supports the model"
)
_BEFORE = r"(thinker\.|model\.)*"
OTHER_PARTS = {
    rf"{_BEFORE}(audio(_\w+)?|embed_audio|sound_\w+|speech_\w+|whisper\w*)\..*": (
        f"the audio model, {_SEPARATE}"
    ),
    rf"{_BEFORE}((vision|visual|image)(_\w+)?|embed_vision|vit\w*|sam_model|siglip2|qwen2_model|mlp1"
    r"|vpm|resampler|view_seperator|(multi_modal_|mm_)?projector|patch_merge_mlp|connector|aligner|merger)"
    r"(\..*)?": (f"the vision model, {_SEPARATE}"),
    r"(talker|token2wav|code2wav)\..*": "the model that speaks, which llama.cpp does not compute",
}
"""The parts beside a language model: patterns of stored names, with what they are."""

OTHER_SETTINGS = frozenset(
    {
        *("vision_config", "audio_config", "projector_config", "vision_token_id"),
        *("image_token_id", "image_token_index", "video_token_id", "video_token_index"),
        *("vision_start_token_id", "vision_end_token_id", "audio_token_id", "audio_token_index"),
    }
)
"""Settings of the other parts, where those of the language model stand beside them."""

_TIED = "tie_word_embeddings"
_DEFAULTS: dict[str, dict[str, Any]] = {
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


def _nothing(_: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A family: the language model in a larger class of config.json.

    family: describes the language model; None for the class that its own settings name
    states: returns settings of the language model that the larger model's settings imply
    others: families of language models with another `model_type`
    beside: returns the settings of a language model that are not an object but stand among the
            others, given config.json and its path
    """

    family: Family | None = None
    states: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _nothing
    others: Mapping[str, Family] = field(default_factory=dict[str, Family])
    beside: Callable[[Mapping[str, Any], str], dict[str, Any]] | None = None

    def __call__(self, config: Mapping[str, Any], where: str) -> Architecture:
        """Describe the language model; raise ArchitectureError if its class is not supported."""
        text = self.beside(config, where) if self.beside else text_settings(config)
        if text is None and self.family is None:
            raise ArchitectureError(
                f"{where}: has no settings of a language model ({', '.join(PLACES)}); download"
                " config.json again"
            )
        of_text = f"{where}: settings of the language model"
        family = self.family_of(text) or class_of(text or {}, of_text).describe
        found = family({**_settings(config, text, family), **self.states(config)}, where)
        return replace(found, ignored={**found.ignored, **OTHER_PARTS})

    def family_of(self, text: Mapping[str, Any] | None) -> Family | None:
        """Return the family of a language model with these settings; None if they name it."""
        return self.others.get(str((text or {}).get("model_type"))) or self.family


def _settings(
    config: Mapping[str, Any], text: Mapping[str, Any] | None, family: Family
) -> dict[str, Any]:
    """Return the settings of the language model; those not stated there are the larger model's."""
    if text is None:
        return {name: value for name, value in config.items() if name not in OTHER_SETTINGS}
    shared = family.settings.read if isinstance(family, Declared) else frozenset[str]()
    outside = {name: config[name] for name in shared if config.get(name) is not None}
    # Either may say that the embedding is the output matrix. One that is stored is used if it
    # differs.
    tied = {_TIED: True} if config.get(_TIED) is True or text.get(_TIED) is True else {}
    defaults = _DEFAULTS.get(str(text.get("model_type")), {})
    return {**defaults, **outside, **text, **tied}
