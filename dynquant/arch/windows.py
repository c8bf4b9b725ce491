"""Sliding windows: which layers attend to the last few tokens only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dynquant.arch.config import Count, Truth, read_config
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, booleans, u32


@dataclass(frozen=True)
class _Window:
    sliding_window: Count


@dataclass(frozen=True)
class _Types:
    layer_types: tuple[Literal["sliding_attention", "full_attention"], ...]


def layer_types(
    config: Mapping[str, Any], n_layers: int, pattern: int, where: str
) -> tuple[bool, ...]:
    """Return which layers have a window: what `layer_types` says, or all but each pattern-th.

    Raises ArchitectureError for types of other kinds, or of another number of layers.
    """
    if config.get("layer_types") is None:
        return _every(n_layers, pattern)
    types = read_config(_Types, config, where).layer_types
    if len(types) != n_layers:
        raise ArchitectureError(
            f"{where}: layer_types has {len(types)} entries for num_hidden_layers {n_layers}"
        )
    return tuple(t == "sliding_attention" for t in types)


def window_keys(
    arch: str, config: Mapping[str, Any], slides: tuple[bool, ...], pattern: int, where: str
) -> Keys:
    """Return attention.sliding_window, and its pattern where llama.cpp would take another.

    slides:  which layers have the window, which config.json must then give
    pattern: all layers but each pattern-th have one, as llama.cpp knows the architecture

    Raises ArchitectureError where no layer has one: llama.cpp's graphs with windows need some.
    """
    if not any(slides):
        raise ArchitectureError(
            f"{where}: layer_types has no 'sliding_attention'; llama.cpp's {arch} needs a layer"
            " with it"
        )
    window = read_config(_Window, config, where).sliding_window
    keys = {f"{arch}.attention.sliding_window": u32(window)}
    if slides != _every(len(slides), pattern):
        keys[f"{arch}.attention.sliding_window_pattern"] = booleans(slides)
    return keys


@dataclass(frozen=True)
class _Said:
    max_position_embeddings: Count
    sliding_window: int | None = None
    use_sliding_window: Truth | None = None


def window_left_out(config: Mapping[str, Any], where: str, used: bool = True) -> tuple[str, ...]:
    """Return what to tell people of a window that llama.cpp's graph of the family does not have.

    used: what a config.json means that does not say `use_sliding_window`
    """
    said = read_config(_Said, config, where)
    used = used if said.use_sliding_window is None else said.use_sliding_window
    if not used or not said.sliding_window or said.sliding_window >= said.max_position_embeddings:
        return ()
    return (
        f"{where}: sliding_window is {said.sliding_window}, and llama.cpp's graph of this family"
        " has no window: texts that are longer are answered otherwise than by the model's own code",
    )


def _every(n_layers: int, pattern: int) -> tuple[bool, ...]:
    return tuple((layer + 1) % pattern != 0 for layer in range(n_layers))
