"""Sliding windows: which layers attend only to the last few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dynquant.arch.config import Count, LayersCount, Truth, read_config
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, booleans, u32


@dataclass(frozen=True)
class _Window:
    sliding_window: Count


@dataclass(frozen=True)
class _Types:
    layer_types: tuple[str, ...]


def layer_types(
    config: Mapping[str, Any], n_layers: int, pattern: int, where: str
) -> tuple[bool, ...]:
    """Return which layers have a window: by `layer_types`, else all but every pattern-th."""
    if config.get("layer_types") is None:
        return _every(n_layers, pattern)
    types = read_config(_Types, config, where).layer_types
    return tuple(t == "sliding_attention" for t in types)


def window_keys(
    arch: str, config: Mapping[str, Any], slides: tuple[bool, ...], pattern: int, where: str
) -> Keys:
    """Return attention.sliding_window, and its pattern if llama.cpp's default differs.

    slides:  which layers have the window; if any has, config.json must state its size
    pattern: llama.cpp's default: all layers have a window but every pattern-th

    Raises ArchitectureError if no layer has a window: llama.cpp's graphs with windows need some.
    """
    if not any(slides):
        raise ArchitectureError(
            f"{where}: layer_types has no 'sliding_attention'; llama.cpp's {arch} needs at least"
            " one such layer"
        )
    window = read_config(_Window, config, where).sliding_window
    keys = {f"{arch}.attention.sliding_window": u32(window)}
    if slides != _every(len(slides), pattern):
        keys[f"{arch}.attention.sliding_window_pattern"] = booleans(slides)
    return keys


@dataclass(frozen=True)
class _Stated:
    max_position_embeddings: Count
    num_hidden_layers: LayersCount
    sliding_window: int | None = None
    use_sliding_window: Truth = False
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None


def window_left_out(
    config: Mapping[str, Any], where: str, default: int | None = None
) -> tuple[str, ...]:
    """Return a warning if the model has a window and llama.cpp's graph of the family has none.

    Only for families whose own code reads `sliding_window`; it has no effect in all others.

    default: the window if config.json does not state one; null is stated, and means no window
    """
    c = read_config(_Stated, config, where)
    window = c.sliding_window if "sliding_window" in config else default
    if not window or window >= c.max_position_embeddings:
        return ()
    return (_left_out(window, where),)


def switched_window_left_out(
    config: Mapping[str, Any], where: str, layers: Literal["last", "some", "all"]
) -> tuple[str, ...]:
    """Return that warning for a Qwen, whose windows act if `use_sliding_window` is true.

    layers: which have a window: those that `layer_types` lists, and without it those from
            `max_window_layers` on ("last") or every second ("some"); or all without exception
    """
    c = read_config(_Stated, config, where)
    found = layers != "last" or c.max_window_layers < c.num_hidden_layers
    if layers != "all" and c.layer_types is not None:
        found = "sliding_attention" in c.layer_types
    return window_left_out(config, where, 4096) if c.use_sliding_window and found else ()


def _left_out(window: int, where: str) -> str:
    return (
        f"{where}: sliding_window is {window}, but llama.cpp's graph of this family has"
        " no window: for longer texts results differ from the model's own code"
    )


def _every(n_layers: int, pattern: int) -> tuple[bool, ...]:
    return tuple((layer + 1) % pattern != 0 for layer in range(n_layers))
