"""Mistral 3: language models of Mistral Small 3.1 and 3.2, Devstral 2, Magistral, Ministral 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.attention.windows import window_left_out
from dynquant.arch.base import Architecture, renamed
from dynquant.arch.config import Positive, read_config
from dynquant.arch.families.llama import llama
from dynquant.arch.families.mistral4 import MISTRAL4
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.positions.rope import mscale_keys, read_rope, rope_settings
from dynquant.arch.settings import DECODER, Declared, Settings, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.keys import f32, u32

_NAME = "mistral3"


@dataclass(frozen=True)
class _Growth:
    """How much queries grow with their position, in rope_parameters."""

    llama_4_scaling_beta: Positive | None = None


def mistral3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Mistral or a Ministral 3: a Llama, whose queries may grow with their position."""
    is_ministral = config.get("model_type") == "ministral3"
    config = {**({"head_dim": 128} if is_ministral else {}), **config}
    rope = read_rope(
        config,
        where,
        known=("linear", "dynamic", "yarn"),
        approximated=("beta_fast", "beta_slow"),
    )
    unscaled = {"rope_parameters": None, "rope_scaling": None, "rope_theta": rope.rope_theta}
    found = llama({**config, **unscaled}, where)
    keys = renamed(found.keys, _NAME) | mscale_keys(_NAME, rope)
    beta = read_config(_Growth, rope_settings(config), where).llama_4_scaling_beta
    if beta is not None:
        keys[f"{_NAME}.attention.temperature_scale"] = f32(beta)
        # The period of the growth, also where positions are not scaled.
        keys[f"{_NAME}.rope.scaling.original_context_length"] = u32(
            rope.original_max_position_embeddings
        )
    default = None if is_ministral else 4096  # of transformers' classes
    return replace(found, name=_NAME, keys=keys, deviations=window_left_out(config, where, default))


_MISTRAL3 = Declared(
    mistral3,
    Settings(
        read=DECODER | {"sliding_window"},
        of_rope=reads(_Growth) | {"max_position_embeddings"},
    ),
)
FAMILIES = {
    "Ministral3ForCausalLM": _MISTRAL3,
    "Mistral3ForConditionalGeneration": Wrapped(_MISTRAL3, others={"mistral4": MISTRAL4}),
}
GRAPHS = {
    "mistral3": GGUFGraph("Ministral3ForCausalLM"),
}
