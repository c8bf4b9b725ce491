"""Qwen3.5, 3.6 and 3.8, dense and with experts: the language models, alone or in one that sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.attention.linear import LAYER_TYPES, Linear, recurrent_of
from dynquant.arch.base import Architecture
from dynquant.arch.config import read_config
from dynquant.arch.decoder import MLP
from dynquant.arch.families.qwen3_next import MIXTURE, hybrid
from dynquant.arch.families.qwen_moe import READ, read_experts
from dynquant.arch.gguf_files.graph import GATE_UP, QKV, GGUFGraph
from dynquant.arch.positions.sections import SECTIONS, section_keys, split_sections, unrotated_pairs
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Only,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.wrapped import Wrapped

_SECTIONS = (11, 11, 10)
"""transformers' default."""


def qwen35(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a dense Qwen3.5: like Qwen3-Next, with a matrix for each input of linear attention.

    Most checkpoints have a prediction layer.
    """
    plain, sections = split_sections(config, where, _SECTIONS)
    linear = read_config(Linear, plain, where)
    found = hybrid("qwen35", plain, where, linear, linear.by_purpose, MLP)
    return _with_sections(found, sections, where)


def qwen35moe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen3.5 with experts in every layer, whose weights always sum to one."""
    plain, sections = split_sections(config, where, _SECTIONS)
    # transformers' default, and what its class always does.
    shared = {"shared_expert_intermediate_size": 512, **plain, "norm_topk_prob": True}
    experts = read_experts(shared, where)
    linear = read_config(Linear, plain, where)
    is_stated = plain.get("intermediate_size") is not None
    # No layer is dense, and llama.cpp does not need the size.
    c = plain if is_stated else {**plain, "intermediate_size": experts.moe_intermediate_size}
    found = hybrid("qwen35moe", c, where, linear, linear.by_purpose, MIXTURE, experts)
    unused = () if is_stated else ("qwen35moe.feed_forward_length",)
    keys = {key: value for key, value in found.keys.items() if key not in unused}
    return _with_sections(replace(found, keys=keys), sections, where)


def _with_sections(found: Architecture, sections: tuple[int, ...], where: str) -> Architecture:
    n_rotated = found.keys[f"{found.name}.rope.dimension_count"].value
    assert isinstance(n_rotated, int)
    return replace(
        found,
        keys=found.keys | section_keys(found.name, sections, n_rotated, where),
        deviations=(*found.deviations, *unrotated_pairs(sections, n_rotated, where)),
    )


_SETTINGS = Settings(
    read=DECODER | reads(Linear),
    harmless={
        **NO_WINDOW,
        **harmless("llama.cpp's state is F32", "mamba_ssm_dtype"),
        **harmless("how a checkpoint was changed", "unsloth_fixed_mtp"),
    },
    only={
        **constant(True, "attn_output_gate"),
        **constant(False, "mtp_use_dedicated_embeddings"),
        "mtp_num_hidden_layers": Only((0, 1), "llama.cpp computes one prediction layer"),
        "output_gate_type": Only(("swish", "silu"), "llama.cpp computes this family with 'swish'"),
    },
    of_rope=SECTIONS,
    layer_types=LAYER_TYPES,
)
_QWEN35 = Wrapped(Declared(qwen35, _SETTINGS))
_QWEN35MOE = Wrapped(Declared(qwen35moe, replace(_SETTINGS, read=_SETTINGS.read | READ)))
FAMILIES = {
    "Qwen3_5ForCausalLM": _QWEN35,
    "Qwen3_5ForConditionalGeneration": _QWEN35,
    "Qwen3_5MoeForCausalLM": _QWEN35MOE,
    "Qwen3_5MoeForConditionalGeneration": _QWEN35MOE,
    "MiniCPMV4_6ForConditionalGeneration": _QWEN35,
}
GRAPHS = {
    "qwen35": GGUFGraph(
        "Qwen3_5ForCausalLM",
        settings={"rope_parameters": {"mrope_section": [1, 1, 1]}},
        layers=recurrent_of,
    ),
    "qwen35moe": GGUFGraph(
        "Qwen3_5MoeForCausalLM",
        settings={"rope_parameters": {"mrope_section": [1, 1, 1]}},
        layers=recurrent_of,
        fused=(QKV, GATE_UP),
    ),
}
