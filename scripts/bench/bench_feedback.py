#!/usr/bin/env python3
"""The cost of error feedback beside plain encoding, for each type, on one thread.

    pip install -e '.[dev]'
    python scripts/bench/bench_feedback.py [--n 4096] [--rows 256] [--types IQ2_XXS,Q4_K]

Nanoseconds for a weight: plain (effort normal, with an importance), with feedback, and with one and
two sweeps; their ratios to plain; and ggml's own encoder with the same importance, of the wheel
xllamacpp. Weights are Gaussian, inputs are correlated. The best of three runs each.

The limit: feedback and two sweeps multiply and add 2.5 n numbers for each weight, in float32,
sixteen rows at a time. `sums` is the time of these alone, at the rate that the core reaches in the
error of outputs (n sums for each weight and 256 rows of S).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dynquant.arrays import U8
from dynquant.importance.moments import upper_triangle
from dynquant.quants import ALL, encode
from dynquant.quants.codec import active_isa
from dynquant.quants.feedback import (
    Factor,
    Feedback,
    encode_floats_with_feedback,
    factor_of,
    output_errors,
    panels_of,
)
from dynquant.quants.search import NORMAL

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from oracles import ggml_encode


def seconds(run: Callable[[], object]) -> float:
    """Return the time of the quickest of three runs."""
    found: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


def correlated(n: int, n_tokens: int) -> Factor:
    """Return the factor of random inputs whose neighbours are alike."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_tokens, n), np.float32)
    x[:, 1:] += 0.7 * x[:, :-1]
    return factor_of(upper_triangle(x.T @ x / np.float32(n_tokens)), n, 0.2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=4096, help="weights of a row")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--types", default="IQ1_S,IQ2_XXS,IQ3_XXS,Q2_K,Q3_K,Q4_K,IQ4_NL,Q6_K,Q8_0")
    given = parser.parse_args()
    n, rows = given.n, given.rows
    started = time.perf_counter()
    factor = correlated(n, 4 * n)
    made = time.perf_counter() - started
    rng = np.random.default_rng(1)
    importance = rng.lognormal(0, 1, n).astype(np.float32)
    w = rng.standard_normal((rows, n), np.float32)
    table = Table(
        box=None, title=f"{rows} rows of {n}, {active_isa()}, one thread; ns for a weight"
    )
    for column in ("type", "ggml", "plain", "feedback", "1 sweep", "2 sweeps", "2 / plain"):
        table.add_column(column, justify="left" if column == "type" else "right")
    for name in given.types.upper().split(","):
        out = np.empty((rows, ALL[name].row_size(n)), np.uint8)

        def fed(sweeps: int, name: str = name, out: U8 = out) -> None:
            encode_floats_with_feedback(
                w.view(np.uint8),
                ALL["F32"],
                ALL[name],
                out,
                Feedback(factor, importance, sweeps),
                NORMAL,
            )

        times = [
            seconds(lambda name=name: ggml_encode(w, ALL[name], importance)),
            seconds(lambda name=name: encode(w, name, importance)),
            *(seconds(lambda k=k, fed=fed: fed(k)) for k in range(3)),
        ]
        ns = [1e9 * t / w.size for t in times]
        table.add_row(name, *(f"{t:.1f}" for t in ns), f"{ns[4] / ns[1]:.1f}")
        print(name, *(f"{t:.1f}" for t in ns), file=sys.stderr, flush=True)
    blocks = encode(w, "Q8_0")
    panels = panels_of(rng.standard_normal((256, n), np.float32))
    rate = (
        rows
        * n
        * 256
        / seconds(
            lambda: output_errors(w.view(np.uint8), ALL["F32"], n, ALL["Q8_0"], blocks, panels)
        )
    )
    table.add_section()
    table.add_row(
        "sums",
        "",
        "",
        f"{n / 2 / rate * 1e9:.1f}",
        f"{1.5 * n / rate * 1e9:.1f}",
        f"{2.5 * n / rate * 1e9:.1f}",
    )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(f"{rate / 1e9:.1f}e9 sums a second; the inputs' factor took {made:.1f} s")


if __name__ == "__main__":
    main()
