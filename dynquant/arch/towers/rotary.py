"""Rotary positions of vision encoders: llama.cpp has one base and one form for each encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dynquant.arch.positions.rope import rope_settings
from dynquant.untrusted import shown

_THETA = 10000


def rotary_problems(config: Mapping[str, Any], n_per_head: int, where: str) -> Iterator[str]:
    """Yield messages for rotations in two directions that llama.cpp does not compute.

    n_per_head: elements of a head
    """
    stated = {**config, **rope_settings(config)}
    theta, kind = stated.get("rope_theta"), stated.get("rope_type")
    if theta not in (None, _THETA):
        yield f"{where}: rope_theta is {shown(theta)}; llama.cpp computes {_THETA}"
    if kind not in (None, "default", "axial"):
        yield f"{where}: rope_type is {shown(kind)}; llama.cpp does not scale these positions"
    if n_per_head % 4:
        yield (
            f"{where}: heads have {n_per_head} elements; llama.cpp rotates pairs in two directions,"
            " a multiple of 4"
        )
