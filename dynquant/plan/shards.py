"""How a file is cut into shards: whole tensors, in their order, up to a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Tensors start..stop of a plan in one file; n_bytes: of its data section."""

    start: int
    stop: int
    n_bytes: int


def shards_of(sizes: Sequence[int], most: int | None) -> tuple[Shard, ...]:
    """Return the shards of tensors of these padded sizes.

    most: bytes of a shard; None for one file

    A tensor that is larger than that has a shard for itself. Keys are not counted, as
    llama-gguf-split does not count them.
    """
    found: list[Shard] = []
    start, n_bytes = 0, 0
    for i, size in enumerate(sizes):
        if most is not None and i > start and n_bytes + size > most:
            found.append(Shard(start, i, n_bytes))
            start, n_bytes = i, 0
        n_bytes += size
    return (*found, Shard(start, len(sizes), n_bytes))
