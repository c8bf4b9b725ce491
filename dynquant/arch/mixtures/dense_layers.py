"""The first layers of a mixture of experts, which have none: how config.json states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dynquant.arch.config import LayersCount, Natural, read_config
from dynquant.errors import ArchitectureError


@dataclass(frozen=True)
class DenseLayers:
    """Which layers have experts: a number, or a list."""

    num_hidden_layers: LayersCount
    first_k_dense_replace: Natural | None = None
    mlp_layer_types: tuple[Literal["dense", "sparse"], ...] | None = None


@dataclass(frozen=True)
class ListedLayers:
    """Which layers have experts: a list in either of two forms; without one, all have."""

    num_hidden_layers: LayersCount
    moe_layer_freq: tuple[Natural, ...] | None = None
    mlp_layer_types: tuple[Literal["dense", "sparse"], ...] | None = None


def n_leading_dense(config: Mapping[str, Any], where: str, default: int = 1) -> int:
    """Return how many layers have no experts; they are the first.

    default: of the model's class

    Raises ArchitectureError if there are later ones, or if two settings contradict each other.
    """
    layers = read_config(DenseLayers, config, where)
    n, stated, types = (
        layers.num_hidden_layers,
        layers.first_k_dense_replace,
        layers.mlp_layer_types,
    )
    if types is None:
        return min(default if stated is None else stated, n)
    found = _leading([kind == "sparse" for kind in types], n, "mlp_layer_types", where)
    if stated is not None and stated != found:
        raise ArchitectureError(
            f"{where}: first_k_dense_replace is {stated}, but mlp_layer_types has {found} dense"
            " layers; remove the one that is wrong"
        )
    return found


def n_listed_dense(config: Mapping[str, Any], where: str) -> int:
    """Return how many layers have no experts by a list; they are the first.

    Raises ArchitectureError if there are later ones.
    """
    layers = read_config(ListedLayers, config, where)
    n = layers.num_hidden_layers
    if layers.mlp_layer_types is not None:
        sparse = [kind == "sparse" for kind in layers.mlp_layer_types]
        return _leading(sparse, n, "mlp_layer_types", where)
    return _leading([*map(bool, layers.moe_layer_freq or (1,) * n)], n, "moe_layer_freq", where)


def _leading(sparse: list[bool], n_layers: int, name: str, where: str) -> int:
    if len(sparse) != n_layers or sorted(sparse) != sparse:
        raise ArchitectureError(
            f"{where}: {name} is not dense and then sparse for each of {n_layers} layers, as"
            " llama.cpp's graph needs"
        )
    return sparse.count(False)
