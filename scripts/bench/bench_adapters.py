"""Weights per second that an adapter is added to, beside the encoder that follows.

    python scripts/bench/bench_adapters.py

One thread; the best of three runs over 512 rows of 4096 weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from dynquant.arch.adapters.low_rank import add_product
from dynquant.quants import ALL, codec
from dynquant.quants.encoder import encode

ROWS, COLUMNS = 512, 4096


def rate(step: Callable[[], object]) -> float:
    """Return millions of weights a second."""
    seconds: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return ROWS * COLUMNS / min(seconds) / 1e6


def main() -> None:
    """Print the rates."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((ROWS, COLUMNS), np.float32)
    importance = rng.random(COLUMNS, np.float32)
    print(f"{codec.active_isa()}")
    for name in ("Q8_0", "Q4_K"):
        found = rate(lambda name=name: encode(weights, ALL[name], importance))
        print(f"{name}: {found:.0f} million weights/s")
    for rank in (16, 64):
        left = rng.standard_normal((ROWS, rank), np.float32)
        right = rng.standard_normal((rank, COLUMNS), np.float32)
        factor = np.float32(1e-6)
        found = rate(lambda a=left, b=right, f=factor: add_product(weights, a, b, f))
        print(f"adapter of rank {rank}: {found:.0f} million weights/s")


if __name__ == "__main__":
    main()
