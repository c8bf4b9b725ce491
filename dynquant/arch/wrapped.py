"""A language model inside a larger model, which also sees, hears or speaks.

The language model becomes the GGUF. The other parts are left out and reported. Three things differ
from a language model alone, and all three are here or in gather.py: its settings are an object in
config.json, its tensors have a prefix, and there are tensors of other parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from dynquant.arch.base import Architecture
from dynquant.arch.families import Family
from dynquant.arch.model_types import class_of
from dynquant.arch.projectors import find_projector
from dynquant.arch.settings import Declared
from dynquant.errors import ArchitectureError
from dynquant.text_settings import DEFAULTS, PLACES, text_settings
from dynquant.untrusted import shown

SEPARATE = "which llama.cpp reads from a separate file; "
_BY_LLAMA = "llama.cpp's `convert_hf_to_gguf.py --mmproj` makes it if it supports the model"
WRITTEN = "`--mmproj` writes it"
"""The end of the reason why a part is left out that a projector file holds."""
_BEFORE = r"(thinker\.|model\.)*"
OTHER_PARTS = {
    rf"{_BEFORE}(audio(_\w+)?|embed_audio|sound_\w+|speech_\w+|whisper\w*)\..*": (
        f"the audio model, {SEPARATE}{_BY_LLAMA}"
    ),
    rf"{_BEFORE}((vision|visual|image)(_\w+)?|embed_vision|vit\w*|sam_model|siglip2|qwen2_model|mlp1"
    r"|vpm|resampler|view_seperator|(multi_modal_|mm_)?projector|patch_merge_mlp|connector|aligner"
    r"|merger)(\..*)?": (f"the vision model, {SEPARATE}{_BY_LLAMA}"),
    r"(talker|token2wav|code2wav)\..*": "the model that speaks, which llama.cpp does not compute",
    rf"{_BEFORE}(vqmodel|generation_(embeddings|aligner|head))\..*": (
        "the model that draws, which llama.cpp does not compute"
    ),
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
            if named := config.get("text_model_id"):
                raise ArchitectureError(
                    f"{where}: the language model is another one, {shown(named)} (text_model_id);"
                    " convert that one, and this one with --mmproj"
                )
            raise ArchitectureError(
                f"{where}: has no settings of a language model ({', '.join(PLACES)}); download"
                " config.json again"
            )
        of_text = f"{where}: settings of the language model"
        family = self.family_of(text) or class_of(text or {}, of_text).describe
        found = family({**_settings(config, text, family), **self.states(config)}, where)
        return replace(found, ignored={**found.ignored, **_other_parts(config)})

    def family_of(self, text: Mapping[str, Any] | None) -> Family | None:
        """Return the family of a language model with these settings; None if they name it."""
        return self.others.get(str((text or {}).get("model_type"))) or self.family


def _other_parts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return `OTHER_PARTS`, and those of this class that a projector file holds."""
    listed: object = config.get("architectures")
    name = cast("list[object]", listed)[0] if isinstance(listed, list) and listed else None
    towers = find_projector(str(name), config) or ()
    written = {
        rf"{_BEFORE}(?:{tower.within}).*": (f"the {tower.kind} model, {SEPARATE}{WRITTEN}")
        for tower in towers
    }
    return OTHER_PARTS | written


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
    defaults = DEFAULTS.get(str(text.get("model_type")), {})
    return {**defaults, **outside, **text, **tied}
