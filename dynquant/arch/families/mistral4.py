"""Mistral Small 4: latent attention and experts, with queries that grow with their position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, renamed
from dynquant.arch.config import Count, Positive, read_config, without_nulls
from dynquant.arch.families.deepseek import HARMLESS, READ, layers_of, softmax_mixture
from dynquant.arch.gguf_files.graph import GATE_UP, QKV, GGUFGraph
from dynquant.arch.positions.rope import rope_settings
from dynquant.arch.settings import Declared, Settings, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, u32

NAME = "mistral4"
_DEFAULTS: dict[str, Any] = {
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 2048,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 128,
    "norm_topk_prob": True,
}
"""Those of transformers' class. A missing q_lora_rank would be 1024, and null means none."""

_ROPE: dict[str, Any] = {
    "type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(frozen=True)
class _Heads:
    qk_rope_head_dim: Count
    qk_nope_head_dim: Count


@dataclass(frozen=True)
class _Rope:
    """What this family has in rope_parameters besides what all have."""

    llama_4_scaling_beta: Positive
    original_max_position_embeddings: Count
    partial_rotary_factor: Positive | None = None
    mscale_all_dim: float = 0

    def problems(self, part: float, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute.

        part: how much of a head is rotated
        """
        if self.partial_rotary_factor not in (None, part):
            yield (
                f"{where}: rope_parameters: partial_rotary_factor is {self.partial_rotary_factor};"
                f" the part of a head that qk_rope_head_dim states is {part}"
            )
        if self.mscale_all_dim not in (0, 1):
            yield (
                f"{where}: rope_parameters: mscale_all_dim is {self.mscale_all_dim}; llama.cpp"
                " computes this family with 1"
            )


def mistral4(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Mistral Small 4, which has DeepSeek-V2's graph under another name in llama.cpp."""
    present = without_nulls(config)
    queries = {"q_lora_rank": config.get("q_lora_rank", 1024)}
    completed = {**_DEFAULTS, **present, **queries}
    stated = rope_settings(completed) or _ROPE
    rope = read_config(_Rope, stated, f"{where}: rope_parameters")
    heads = read_config(_Heads, completed, where)
    part = heads.qk_rope_head_dim / (heads.qk_rope_head_dim + heads.qk_nope_head_dim)
    ArchitectureError.raise_any(rope.problems(part, where))
    rest = {k: v for k, v in stated.items() if k not in ("partial_rotary_factor", "rope_scaling")}
    without_ropes = {**completed, "rope_parameters": rest, "rope_scaling": None}
    found = _renamed(softmax_mixture(without_ropes, where))
    growth = {
        f"{NAME}.attention.temperature_scale": f32(rope.llama_4_scaling_beta),
        f"{NAME}.attention.temperature_length": u32(rope.original_max_position_embeddings),
    }
    merged = found.merged and replace(found.merged, keys=found.merged.keys | growth)
    return replace(found, keys=found.keys | growth, merged=merged)


def _renamed(found: Architecture) -> Architecture:
    merged = found.merged and _renamed(found.merged)
    return replace(found, name=NAME, keys=renamed(found.keys, NAME), merged=merged)


MISTRAL4 = Declared(
    mistral4,
    Settings(
        read=READ - {"num_nextn_predict_layers", "scoring_func", "topk_method"},
        harmless=HARMLESS,
        of_rope=reads(_Rope) | {"max_position_embeddings"},
    ),
)
FAMILIES = {"Mistral4ForCausalLM": MISTRAL4}
GRAPHS = {
    "mistral4": GGUFGraph(
        "Mistral4ForCausalLM",
        settings={"q_lora_rank": None},
        layers=layers_of,
        fused=(QKV, GATE_UP),
    ),
}
