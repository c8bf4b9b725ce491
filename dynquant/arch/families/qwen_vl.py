"""The language models of Qwen2-VL, 2.5-VL, 2.5-Omni, Qwen3-VL and 3-Omni: Qwens with sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from dynquant.arch.base import Architecture, renamed
from dynquant.arch.config import Natural, read_config, without_nulls
from dynquant.arch.decoder import ATTENTION, EMBEDDING, OUTPUT, OUTPUT_NORM, QK_NORMS
from dynquant.arch.families.qwen import WINDOWS, qwen2, qwen3
from dynquant.arch.families.qwen_moe import READ, qwen3moe
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.mixtures.experts import expert_rows, router_row
from dynquant.arch.positions.sections import SECTIONS, section_keys, split_sections, unrotated_pairs
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32


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
        | _deepstack_keys("qwen3vl", config, found.n_layers, where),
        deviations=(*found.deviations, *unrotated_pairs(sections, found.sizes["head"], where)),
    )


_BLOCK = "model.layers.{}.mlp."
_ROUTED = (
    router_row(_BLOCK + "gate.weight"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj", outputs_last=True),
)


def qwen3omni(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a Qwen3-Omni: a Qwen3-MoE with the graph of Qwen3-VL-MoE."""
    plain, sections = split_sections(config, where, (24, 20, 20))
    stated = without_nulls(plain)
    found = qwen3moe({"rope_theta": 1e6, "norm_topk_prob": True, **stated}, where, head_dim=None)
    return replace(
        found,
        name="qwen3vlmoe",
        keys=renamed(found.keys, "qwen3vlmoe")
        | section_keys("qwen3vlmoe", sections, found.sizes["head"], where)
        | _deepstack_keys("qwen3vlmoe", config, found.n_layers, where),
        rows=(*EMBEDDING, *ATTENTION, *QK_NORMS, *_ROUTED, *OUTPUT_NORM, *OUTPUT),
        deviations=unrotated_pairs(sections, found.sizes["head"], where),
    )


def qwen3vlmoe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a Qwen3-VL with experts, whose weights always sum to one."""
    return qwen3omni({"rope_theta": 500000.0, **config, "norm_topk_prob": True}, where)


_DEEPSTACK = [8, 16, 24]
"""transformers' default."""


@dataclass(frozen=True)
class Deepstack:
    """How many layers add features of images; made by `deepstack`."""

    n_deepstack: Natural = 0


def deepstack(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `Deepstack` as settings, from those of the vision model."""
    thinker = config.get("thinker_config")
    larger = cast("dict[str, Any]", thinker) if isinstance(thinker, dict) else config
    vision = larger.get("vision_config")
    stated = cast("dict[str, Any]", vision) if isinstance(vision, dict) else {}
    listed: object = stated.get("deepstack_visual_indexes", _DEEPSTACK)
    return {"n_deepstack": len(cast("list[object]", listed)) if isinstance(listed, list) else 0}


def _deepstack_keys(arch: str, config: Mapping[str, Any], n_layers: int, where: str) -> Keys:
    n = read_config(Deepstack, config, where).n_deepstack
    if n >= n_layers:
        raise ArchitectureError(
            f"{where}: deepstack_visual_indexes of vision_config has {n} entries for"
            f" num_hidden_layers {n_layers}; llama.cpp stops unless there are fewer"
        )
    return {f"{arch}.n_deepstack_layers": u32(n)}


_QWEN2VL = Declared(qwen2vl, Settings(read=DECODER | WINDOWS, of_rope=SECTIONS))
_QWEN3VL = Declared(
    qwen3vl, Settings(read=DECODER | reads(Deepstack), harmless=NO_WINDOW, of_rope=SECTIONS)
)
_WITH_EXPERTS = Settings(
    read=DECODER | READ | reads(Deepstack), harmless=NO_WINDOW, of_rope=SECTIONS
)
_QWEN3OMNI = Wrapped(
    Declared(qwen3omni, replace(_WITH_EXPERTS, of_rope=SECTIONS | {"interleaved"})), deepstack
)
FAMILIES = {
    "Qwen2VLForConditionalGeneration": Wrapped(_QWEN2VL),
    "Qwen2_5_VLForConditionalGeneration": Wrapped(_QWEN2VL),
    "Qwen2_5OmniModel": Wrapped(_QWEN2VL),
    "Qwen2_5OmniForConditionalGeneration": Wrapped(_QWEN2VL),
    "Qwen2_5OmniThinkerForConditionalGeneration": Wrapped(_QWEN2VL),
    "Qwen3VLForConditionalGeneration": Wrapped(_QWEN3VL, deepstack),
    "Qwen3VLMoeForConditionalGeneration": Wrapped(Declared(qwen3vlmoe, _WITH_EXPERTS), deepstack),
    "Qwen3OmniMoeForConditionalGeneration": _QWEN3OMNI,
    "Qwen3OmniMoeThinkerForConditionalGeneration": _QWEN3OMNI,
}
GRAPHS = {
    "qwen2vl": GGUFGraph(
        "Qwen2VLForConditionalGeneration",
        settings={"rope_parameters": {"mrope_section": [1, 1, 1]}},
    ),
    "qwen3vl": GGUFGraph(
        "Qwen3VLForConditionalGeneration",
        settings={
            "rope_parameters": {"mrope_section": [1, 1, 1]},
            "vision_config": {"deepstack_visual_indexes": []},
        },
    ),
    "qwen3vlmoe": GGUFGraph(
        "Qwen3VLMoeForConditionalGeneration",
        settings={
            "rope_parameters": {"mrope_section": [1, 1, 1]},
            "vision_config": {"deepstack_visual_indexes": []},
        },
    ),
}
