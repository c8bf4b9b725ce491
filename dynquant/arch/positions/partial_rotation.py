"""Heads of which only the first weights are rotated: their settings and their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.decoder import SILU, Config, decoder_keys, read_decoder
from dynquant.arch.positions.rope import Rope, read_rope
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32

_SCALINGS = ("linear", "dynamic", "yarn")


def read_partial(
    config: Mapping[str, Any],
    where: str,
    head_dim: int | None,
    partial: float,
    activation: tuple[str, ...] = SILU,
) -> tuple[Config, Rope]:
    """Return decoder and rope settings; raise ArchitectureError if an odd number or 0 is rotated.

    head_dim: the family's default; None for hidden_size / num_attention_heads
    partial:  the family's default of partial_rotary_factor
    activation: names of the activation in llama.cpp's graph of the family
    """
    c = read_decoder(config, where, head_dim, activation)
    rope = read_rope(config, where, _SCALINGS, partial=partial)
    if _n_rotated(c, rope) % 2 or not _n_rotated(c, rope):
        raise ArchitectureError(
            f"{where}: partial_rotary_factor {rope.partial_rotary_factor} rotates"
            f" {_n_rotated(c, rope)} weights of a head; rotary embeddings need an even number,"
            " not 0"
        )
    return c, rope


def _n_rotated(c: Config, rope: Rope) -> int:
    return int(c.n_per_head * rope.partial_rotary_factor)


def partial_keys(arch: str, c: Config, rope: Rope, *, layer_norm: bool = False) -> Keys:
    """Return the decoder's keys, and the number of rotated weights of a head.

    layer_norm: whether norms subtract the mean, in families that have no head_dim
    """
    head_dim = None if layer_norm else c.n_per_head
    keys = decoder_keys(arch, c, rope, head_dim, layer_norm=layer_norm)
    return keys | {f"{arch}.rope.dimension_count": u32(_n_rotated(c, rope))}
