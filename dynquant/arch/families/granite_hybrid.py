"""Granite 4: Mamba 2 in most layers and attention in the others, or attention in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import LayersCount, Natural, read_config
from dynquant.arch.families.granite import (
    READ,
    SHARED_GATE_UP,
    Experts,
    granite,
    granitemoe,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.settings import NO_WINDOW, Declared, Settings, constant, harmless, reads
from dynquant.arch.states.mamba2 import MambaSettings, hybrid_layers, step_warnings
from dynquant.errors import ArchitectureError
from dynquant.keys import boolean
from dynquant.transforms import rows_of_each

NAME = "granitehybrid"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_DENSE = (
    Row(SHARED_GATE_UP, _OUT + "ffn_gate.weight", "shared_gate_up hidden"),
    Row(SHARED_GATE_UP, _OUT + "ffn_up.weight", "shared_gate_up hidden"),
    Row(_IN + "shared_mlp.output_linear.weight", _OUT + "ffn_down.weight", "hidden shared"),
)
_ATTENTION = ("attention", "full_attention")
LAYER_TYPES = (*_ATTENTION, "mamba", "linear_attention")
"""Kinds of layers, each by its older and its newer name."""


@dataclass(frozen=True)
class _Hybrid:
    """Settings of Granite 4: which layers have attention, and how positions count."""

    num_hidden_layers: LayersCount
    layer_types: tuple[str, ...]
    shared_intermediate_size: Natural
    num_local_experts: Natural = 8
    position_embedding_type: str | None = None

    @property
    def has_attention(self) -> list[bool]:
        """Which layers have attention."""
        return [kind in _ATTENTION for kind in self.layer_types]

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graphs cannot compute."""
        if len(self.layer_types) != self.num_hidden_layers:
            yield (
                f"{where}: layer_types has {len(self.layer_types)} entries for num_hidden_layers"
                f" {self.num_hidden_layers}"
            )
        if all(self.has_attention) and self.position_embedding_type != "rope":
            yield (
                f"{where}: position_embedding_type is {self.position_embedding_type!r}; llama.cpp"
                " computes a Granite without Mamba with 'rope'"
            )
        if not self.num_local_experts and not self.shared_intermediate_size:
            yield f"{where}: shared_intermediate_size is 0, and there are no experts"


def granite4(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Granite 4, dense or with experts, with Mamba layers or without.

    Without experts, the MLP is what is the shared expert with them. Without Mamba layers it is
    an older Granite.
    """
    h = read_config(_Hybrid, config, where)
    ArchitectureError.raise_any(h.problems(where))
    found = granitemoe(config, where) if h.num_local_experts else _dense(config, where, h)
    if all(h.has_attention):
        return found
    settings = read_config(MambaSettings, config, where)
    has_rope = h.position_embedding_type == "rope"
    limits = {"time_step_limit": settings.time_step_limit}
    hybrid = hybrid_layers(found, NAME, h.has_attention, settings, where)
    return replace(
        hybrid,
        keys={key: value for key, value in hybrid.keys.items() if has_rope or ".rope." not in key}
        | {f"{NAME}.rope.scaling.finetuned": boolean(has_rope)},
        deviations=(*found.deviations, *step_warnings(limits, where)),
    )


def _dense(config: Mapping[str, Any], where: str, h: _Hybrid) -> Architecture:
    n = h.shared_intermediate_size
    dense = granite({**config, "intermediate_size": n}, where)
    return replace(
        dense,
        rows=(*(row for row in dense.rows if ".mlp." not in row.stored), *_DENSE),
        sizes={**dense.sizes, "shared": n, "shared_gate_up": 2 * n},
        via={
            **dense.via,
            "ffn_gate": partial(rows_of_each, start=0, stop=n),
            "ffn_up": partial(rows_of_each, start=n, stop=2 * n),
        },
    )


FAMILIES = {
    "GraniteMoeHybridForCausalLM": Declared(
        granite4,
        Settings(
            read=READ | reads(Experts, _Hybrid, MambaSettings),
            harmless=NO_WINDOW
            | harmless("repeats another setting", "attention_layer_indices")
            | harmless("how the model is computed", "mamba_chunk_size")
            | harmless("used while training only", "init_method"),
            only=constant("rmsnorm", "normalization_function")
            | constant(True, "mamba_conv_bias")
            | constant(False, "mamba_proj_bias"),
            layer_types=LAYER_TYPES,
        ),
    ),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return the kinds of a GGUF's layers; without experts the shared one is the MLP."""
    experts = keys.number("expert_count") or 0
    shared = keys.number("expert_shared_feed_forward_length") or 0
    heads = keys.of_layers("attention.head_count_kv")
    return {
        "layer_types": ["attention" if n else "mamba" for n in heads],
        "num_local_experts": experts,
        "shared_intermediate_size": shared | int(not experts),
    }


GRAPHS = {
    "granitehybrid": GGUFGraph(
        "GraniteMoeHybridForCausalLM", settings={"mamba_n_heads": 2}, layers=_layers_of
    ),
}
