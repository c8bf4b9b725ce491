"""The language models of Qwen2-VL, Qwen2.5-VL, Qwen2.5-Omni and Qwen3-VL: Qwens with sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from dynquant.arch.base import Architecture, renamed
from dynquant.arch.config import Natural, read_config
from dynquant.arch.families.qwen import WINDOWS, qwen2, qwen3
from dynquant.arch.sections import SECTIONS, section_keys, split_sections, unrotated_pairs
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.keys import u32


def qwen2vl(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a Qwen2-VL or Qwen2.5-VL: a Qwen2."""
    plain, sections = split_sections(config, where)
    # transformers' defaults.
    found = qwen2({"rms_norm_eps": 1e-5, "rope_theta": 1e6, **plain}, where)
    epsilon = (
        f"{where}: llama.cpp's qwen2vl does not read rms_norm_eps, and computes norms with 0; where"
        " a layer's input is small, results differ slightly"
    )
    return replace(
        found,
        name="qwen2vl",
        deviations=(*found.deviations, epsilon),
        keys=renamed(found.keys, "qwen2vl")
        | section_keys("qwen2vl", sections, found.sizes["head"], where),
    )


def qwen3vl(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a Qwen3-VL: a Qwen3.

    Its first layers add features of images (deepstack), whose number of layers llama.cpp needs.
    """
    plain, sections = split_sections(config, where, (24, 20, 20))
    found = qwen3({"rope_theta": 500000.0, **plain}, where)
    return replace(
        found,
        name="qwen3vl",
        keys=renamed(found.keys, "qwen3vl")
        | section_keys("qwen3vl", sections, found.sizes["head"], where)
        | {"qwen3vl.n_deepstack_layers": u32(read_config(Deepstack, config, where).n_deepstack)},
        deviations=(*found.deviations, *unrotated_pairs(sections, found.sizes["head"], where)),
    )


_DEEPSTACK = [8, 16, 24]
"""transformers' default."""


@dataclass(frozen=True)
class Deepstack:
    """How many layers add features of images; made by `deepstack`."""

    n_deepstack: Natural = 0


def deepstack(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `Deepstack` as settings, from those of the vision model."""
    vision = config.get("vision_config")
    stated = cast("dict[str, Any]", vision) if isinstance(vision, dict) else {}
    listed: object = stated.get("deepstack_visual_indexes", _DEEPSTACK)
    return {"n_deepstack": len(cast("list[object]", listed)) if isinstance(listed, list) else 0}


_QWEN2VL = Declared(qwen2vl, Settings(read=DECODER | WINDOWS, of_rope=SECTIONS))
_QWEN3VL = Declared(
    qwen3vl, Settings(read=DECODER | reads(Deepstack), harmless=NO_WINDOW, of_rope=SECTIONS)
)
FAMILIES = {
    "Qwen2VLForConditionalGeneration": Wrapped(_QWEN2VL),
    "Qwen2_5_VLForConditionalGeneration": Wrapped(_QWEN2VL),
    "Qwen2_5OmniModel": Wrapped(_QWEN2VL),
    "Qwen2_5OmniForConditionalGeneration": Wrapped(_QWEN2VL),
    "Qwen2_5OmniThinkerForConditionalGeneration": Wrapped(_QWEN2VL),
    "Qwen3VLForConditionalGeneration": Wrapped(_QWEN3VL, deepstack),
}
