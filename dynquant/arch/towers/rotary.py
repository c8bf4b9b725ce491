"""Rotary positions in two directions: what llama.cpp computes, and its order of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dynquant.arch.positions.rope import rope_settings
from dynquant.arrays import I64
from dynquant.tensors import TensorSource
from dynquant.transforms import reordered
from dynquant.untrusted import shown

_THETA = 10000


def rotary_problems(
    config: Mapping[str, Any], n_per_head: int, where: str, computed: float = _THETA
) -> Iterator[str]:
    """Yield messages for rotations in two directions that llama.cpp does not compute.

    n_per_head: elements of a head; computed: llama.cpp's base of the angles
    """
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(found := config.get(name), dict | None):
            yield f"{where}: {name} is {shown(found)}, not an object"
    stated = {**config, **rope_settings(config)}
    theta, kind = stated.get("rope_theta"), stated.get("rope_type")
    if theta not in (None, computed):
        yield f"{where}: rope_theta is {shown(theta)}; llama.cpp computes {computed}"
    if kind not in (None, "default", "axial"):
        yield f"{where}: rope_type is {shown(kind)}; llama.cpp does not scale these positions"
    if n_per_head % 4:
        yield (
            f"{where}: heads have {n_per_head} elements; llama.cpp rotates pairs in two directions,"
            " a multiple of 4"
        )


def one_direction_after_the_other(
    source: TensorSource, n_head: int, n_kept: int = 0
) -> TensorSource:
    """Return rows of heads with the pairs of one direction before those of the other.

    Some models store the pairs of both directions by turns; llama.cpp rotates halves of a head.

    n_head: heads to reorder, which are the first
    n_kept: heads after them, which stay
    """
    each = source.shape[0] // (n_head + n_kept)
    half = each // 2

    def order(rows: I64) -> I64:
        head, within = np.divmod(rows, each)
        direction, rest = np.divmod(within, half)
        pair, element = np.divmod(rest, 2)
        moved = head * each + 4 * pair + 2 * direction + element
        return np.where(head < n_head, moved, rows)

    return reordered(source, order)
