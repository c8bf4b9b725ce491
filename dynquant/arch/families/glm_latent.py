"""GLM-4.7-Flash: latent attention and experts as in a DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dynquant.arch.base import Architecture
from dynquant.arch.config import LayersCount, Natural, read_config
from dynquant.arch.families.deepseek import HARMLESS, READ, deepseek3
from dynquant.arch.settings import Declared, Settings, reads
from dynquant.errors import ArchitectureError


@dataclass(frozen=True)
class DenseLayers:
    """Which layers have experts, in either of two forms."""

    num_hidden_layers: LayersCount
    first_k_dense_replace: Natural | None = None
    mlp_layer_types: tuple[Literal["dense", "sparse"], ...] | None = None


def glm4moelite(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-4.7-Flash, which has DeepSeek-V3's graph in llama.cpp."""
    # transformers' defaults.
    defaults = {
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.8,
        "rms_norm_eps": 1e-5,
    }
    present = {key: value for key, value in config.items() if value is not None}
    dense = {"first_k_dense_replace": n_leading_dense(config, where)}
    return deepseek3({**defaults, **present, **dense}, where)


def n_leading_dense(config: Mapping[str, Any], where: str, default: int = 1) -> int:
    """Return how many layers have no experts; they are the first.

    default: of the model's class

    Raises ArchitectureError if there are later ones, or if two settings contradict each other.
    """
    layers = read_config(DenseLayers, config, where)
    stated, types = layers.first_k_dense_replace, layers.mlp_layer_types
    if types is None:
        return min(default, layers.num_hidden_layers) if stated is None else stated
    n = next((i for i, kind in enumerate(types) if kind == "sparse"), len(types))
    if len(types) != layers.num_hidden_layers or "dense" in types[n:]:
        raise ArchitectureError(
            f"{where}: mlp_layer_types is not dense and then sparse for each of"
            f" {layers.num_hidden_layers} layers, as llama.cpp's graph needs"
        )
    if stated is not None and stated != n:
        raise ArchitectureError(
            f"{where}: first_k_dense_replace is {stated}, but mlp_layer_types has {n} dense layers;"
            " remove the one that is wrong"
        )
    return n


FAMILIES = {
    "Glm4MoeLiteForCausalLM": Declared(
        glm4moelite, Settings(read=READ | reads(DenseLayers), harmless=HARMLESS)
    ),
}
