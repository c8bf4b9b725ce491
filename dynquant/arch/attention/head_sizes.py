"""Heads of one size in layers with a window, and of another in all other layers.

The last layers may have no keys and values, and full layers no values: these are the
keys then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from pydantic import Field

from dynquant.arch.base import Row, on
from dynquant.arch.config import Count, read_config
from dynquant.arch.decoder import ATTENTION, MAX_HEAD, QK_NORMS, Config
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, i32s, u32

_LAYERS = "per_layer_config"
_OWN = frozenset({"head_dim", "num_key_value_heads"})


@dataclass(frozen=True)
class Kind:
    """The heads of layers of one kind.

    n_per_head: weights of a head
    n_kv:       heads of K and V
    """

    n_per_head: int
    n_kv: int


@dataclass(frozen=True)
class Heads:
    """The heads of layers with a window, and of full ones."""

    windowed: Kind
    full: Kind


@dataclass(frozen=True)
class _Layer:
    head_dim: Count | None = None
    num_key_value_heads: Count | None = None


@dataclass(frozen=True)
class _Stated:
    global_head_dim: Count = 512
    num_global_key_value_heads: Count | None = None
    per_layer_config: dict[Annotated[int, Field(ge=0)], _Layer] | None = None


HEADS = frozenset({"global_head_dim", "num_global_key_value_heads", _LAYERS})
"""Settings that are read here."""


_ROWS = (*(row for row in ATTENTION if ".self_attn." in row.stored), *QK_NORMS)
_WORDS = frozenset({"q", "kv", "head"})
_V = "blk.{}.attn_v.weight"
_OF_KV = frozenset({"blk.{}.attn_k.weight", _V, "blk.{}.attn_k_norm.weight"})


def read_heads(
    config: Mapping[str, Any], c: Config, slides: tuple[bool, ...], where: str, *, global_kv: bool
) -> Heads:
    """Return the heads: as stated for each layer, else for all full layers.

    slides:    which layers have a window; at least one has and one has not
    global_kv: whether num_global_key_value_heads applies

    Raises ArchitectureError for other settings of single layers, and if layers of one kind differ.
    """
    stated = read_config(_Stated, config, where)
    ArchitectureError.raise_any(_unknown(config, len(slides), where))
    if stated.per_layer_config is None:
        n_kv = stated.num_global_key_value_heads if global_kv else None
        full = _Layer(stated.global_head_dim, n_kv)
        layers = [_Layer() if slide else full for slide in slides]
    else:
        layers = [stated.per_layer_config.get(i, _Layer()) for i in range(len(slides))]
    kinds = [
        Kind(layer.head_dim or c.n_per_head, layer.num_key_value_heads or c.n_head_kv)
        for layer in layers
    ]
    found = [
        {kind for kind, slide in zip(kinds, slides, strict=True) if slide == windowed}
        for windowed in (True, False)
    ]
    ArchitectureError.raise_any(_problems(found, c, where))
    return Heads(*(next(iter(kind)) for kind in found))


def _unknown(config: Mapping[str, Any], n_layers: int, where: str) -> Iterator[str]:
    stated = cast("Mapping[str, Mapping[str, Any]]", config.get(_LAYERS) or {})
    if beyond := sorted(i for i in map(int, stated) if i >= n_layers):
        yield f"{where}: {_LAYERS} has layer {beyond[0]}, but there are {n_layers} layers"
    other = sorted({name for layer in stated.values() for name in layer} - _OWN)
    if other:
        yield (
            f"{where}: {_LAYERS} states {', '.join(other)}; llama.cpp supports only"
            f" {', '.join(sorted(_OWN))} for single layers"
        )


def _problems(found: list[set[Kind]], c: Config, where: str) -> Iterator[str]:
    for kinds, name in zip(found, ("with a window", "without a window"), strict=True):
        if not kinds:
            yield f"{where}: layer_types has no layer {name}; llama.cpp needs at least one"
        if len(kinds) > 1:
            yield (
                f"{where}: {_LAYERS} gives layers {name} different heads; llama.cpp has one size"
                " for all of them"
            )
        for kind in kinds:
            if kind.n_per_head > MAX_HEAD or kind.n_per_head % 2:
                yield (
                    f"{where}: layers {name} have heads of {kind.n_per_head} weights; rotary"
                    f" embeddings need an even number of at most {MAX_HEAD}"
                )
            if c.num_attention_heads % kind.n_kv:
                yield (
                    f"{where}: num_attention_heads {c.num_attention_heads} is not a multiple of"
                    f" {kind.n_kv}, the heads of K and V of layers {name}"
                )


def head_rows(slides: tuple[bool, ...], n_shared: int, *, k_eq_v: bool) -> tuple[Row, ...]:
    """Return the rows of attention with norms on Q and K, by kind of layers.

    n_shared: the last layers, which have no keys and values
    k_eq_v:   whether full layers have no values
    """
    rows: list[Row] = []
    for windowed, kind in ((True, "windowed"), (False, "full")):
        layers = {layer for layer, slide in enumerate(slides) if slide == windowed}
        own = {layer for layer in layers if layer < len(slides) - n_shared}
        for row in _ROWS:
            words = (f"{w}_{kind}" if w in _WORDS else w for w in row.shape.split())
            sized = replace(row, shape=" ".join(words))
            if row.name not in _OF_KV:
                rows += on(layers, (sized,))
            elif windowed or not (k_eq_v and row.name == _V):
                rows += on(own, (sized,))
    return tuple(rows)


def head_sizes(heads: Heads, c: Config) -> dict[str, int]:
    """Return the dimensions that these rows name."""
    return {
        f"{word}_{name}": size
        for name, kind in (("windowed", heads.windowed), ("full", heads.full))
        for word, size in (
            ("head", kind.n_per_head),
            ("q", c.num_attention_heads * kind.n_per_head),
            ("kv", kind.n_kv * kind.n_per_head),
        )
    }


def head_keys(arch: str, heads: Heads, slides: tuple[bool, ...]) -> Keys:
    """Return the keys of the heads, whose rotary part is the whole."""
    n_kv = [(heads.windowed if slide else heads.full).n_kv for slide in slides]
    keys = {
        "attention.head_count_kv": i32s(n_kv) if len({*n_kv}) > 1 else u32(n_kv[0]),
        "attention.key_length": u32(heads.full.n_per_head),
        "attention.value_length": u32(heads.full.n_per_head),
        "attention.key_length_swa": u32(heads.windowed.n_per_head),
        "attention.value_length_swa": u32(heads.windowed.n_per_head),
        "rope.dimension_count": u32(heads.full.n_per_head),
        "rope.dimension_count_swa": u32(heads.windowed.n_per_head),
    }
    return {f"{arch}.{name}": value for name, value in keys.items()}
