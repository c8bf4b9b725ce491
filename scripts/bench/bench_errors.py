#!/usr/bin/env python3
"""What the error figures of a conversion cost beside its encoders, for each type and ISA.

    python scripts/bench/bench_errors.py [--types Q4_K,Q8_0] [--stored F16] [--repeats 5]

Each type encodes a chunk as the conversion reads it, 1 MiB of stored Gaussian weights with
importance, and `error_sums` compares it with its blocks. Nanoseconds of CPU time per weight, one
thread, the fastest of the repeats; decoding alone stands beside them. Per cent are of the
encoder's time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from dynquant.quants import ALL, CORE, Batch, QuantType, decode, encode, isas
from dynquant.quants.codec import error_sums

N_PER_ROW = 4096


def nanoseconds(work: Callable[[], object], n_weights: int, repeats: int) -> float:
    """Return the CPU time of a call per weight, the least of the repeats."""
    least = float("inf")
    for _ in range(repeats):
        start = time.thread_time_ns()
        work()
        least = min(least, time.thread_time_ns() - start)
    return least / n_weights


def costs(qtype: QuantType, stored: QuantType, repeats: int) -> tuple[float, float, float]:
    """Return what encoding, comparing and decoding cost on the ISA in use."""
    rng = np.random.default_rng(1)
    n_rows = CORE.preferred_bytes // stored.row_size(N_PER_ROW)
    x = (0.02 * rng.standard_normal((n_rows, N_PER_ROW))).astype(np.float32)
    w = np.exp(rng.standard_normal(N_PER_ROW)).astype(np.float32)
    rows = encode(x, stored)
    batch = Batch(rows, stored, N_PER_ROW, qtype, w)
    blocks = CORE.encode(batch, measure=False).blocks
    return (
        nanoseconds(lambda: CORE.encode(batch, measure=False), x.size, repeats),
        nanoseconds(
            lambda: error_sums(rows, stored, N_PER_ROW, qtype, blocks, w), x.size, 4 * repeats
        ),
        nanoseconds(lambda: decode(blocks, qtype, N_PER_ROW), x.size, 4 * repeats),
    )


def main() -> None:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", help="comma-separated; default: all")
    parser.add_argument("--stored", choices=("F32", "F16", "BF16"), default="BF16")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    names = arguments.types.upper().split(",") if arguments.types else list(ALL)
    table = Table(title=f"ns per weight, stored as {arguments.stored}", box=None)
    table.add_column("type")
    for isa in isas():
        for column in (f"{isa}: encode", "errors", "%", "decode"):
            table.add_column(column, justify="right")
    for name in names:
        cells: list[str] = []
        for isa in isas():
            os.environ["DYNQUANT_ISA"] = isa
            found = costs(ALL[name], ALL[arguments.stored], arguments.repeats)
            encoding, comparing, decoding = found
            cells += [f"{encoding:.2f}", f"{comparing:.2f}", f"{100 * comparing / encoding:.1f}"]
            cells.append(f"{decoding:.2f}")
        table.add_row(name, *cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
