#!/usr/bin/env python3
"""Encoders beside ggml's: speed, error, and the ratios of both, from one run.

    python scripts/bench/bench_encoders.py [--types Q4_K,Q6_K] [--effort best] [--isa v3] \
        [--threads 2]

Each type x {importance, none} x {gaussian, student-t, tiny-books}, one thread unless --threads says
otherwise (rows are shared out, for both). ggml is called as `ggml_quantize_chunk` of the xllamacpp
wheel;
both encode the same array in turn, and the fastest of the repeats counts for each; the tables that
ggml builds at a type's first use are not counted. Types that ggml
does not encode without importance are measured with it only. Columns:

    Mw/s    million weights per second
    error   sum w (x - decoded)^2 / sum w x^2, decoded by the gguf package, w the importance
    1-cos2  the same at equal gain: what is left when the best single factor is applied
    speed   ours / ggml's; error, 1-cos2 ratios likewise (below 1: we lose less)

Importances are log-normal, sigma 1, a value per column. tiny-books stands for all its matrices,
each encoded on its own; speeds are over all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dynquant.arrays import F32, U8
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.quants import ALL, QuantType, active_isa, encode, isas
from dynquant.quants.search import EFFORTS, Effort

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from oracles import ggml_encode, gguf_decode, requires_importance  # noqa: E402

Matrices = list[F32]


@dataclass(frozen=True)
class Measurement:
    """One row of the table."""

    type: str
    importance: bool
    weights: str
    ggml_mws: float
    ours_mws: float
    ggml_error: float
    ours_error: float
    ggml_angle: float
    ours_angle: float

    @property
    def speed(self) -> float:
        """How many times faster ours is."""
        return self.ours_mws / self.ggml_mws

    @property
    def error(self) -> float:
        """Ours over ggml's; one where both are exact."""
        return self.ours_error / self.ggml_error if self.ggml_error else 1.0

    @property
    def angle(self) -> float:
        """Ours over ggml's at equal gain; one where both are exact."""
        return self.ours_angle / self.ggml_angle if self.ggml_angle else 1.0


def tiny_books() -> Matrices:
    """Read the matrices of the trained model that the tests carry."""
    checkpoint = open_checkpoint(ROOT / "tests" / "data" / "tiny-books")
    matrices: Matrices = []
    for stored in checkpoint.tensors.values():
        if len(stored.shape) != 2:
            continue
        source = stored.source()
        raw = np.empty(stored.n_bytes, np.uint8)
        source.read(0, stored.shape[0], raw)
        assert source.stored is ALL["BF16"]
        bits = raw.view("<u2").astype(np.uint32) << 16
        matrices.append(bits.view(np.float32).reshape(stored.shape))
    return matrices


def matrices() -> Iterator[tuple[str, Matrices]]:
    """Yield each kind of weights by name."""
    rng = np.random.default_rng(1)
    shape = (256, 4096)
    yield "gaussian", [(0.02 * rng.standard_normal(shape)).astype(np.float32)]
    heavy = 0.02 * rng.standard_t(5, shape)
    heavy[rng.random(shape) < 2e-4] *= 6
    yield "student-t", [heavy.astype(np.float32)]
    yield "tiny-books", tiny_books()


def importance_of(x: F32) -> F32:
    """Make up importances spread as those of real imatrix files."""
    rng = np.random.default_rng(x.shape[1])
    return np.exp(rng.standard_normal(x.shape[1])).astype(np.float32)


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def errors(
    xs: Matrices, ws: list[F32 | None], blocks: list[U8], qtype: QuantType
) -> tuple[float, float]:
    """Return the weighted relative error and 1 - cos^2 over all matrices together."""
    ee = xx = xy = yy = 0.0
    for x, w, b in zip(xs, ws, blocks, strict=True):
        weight = np.ones(x.shape[1]) if w is None else w.astype(np.float64)
        exact, decoded = x.astype(np.float64), gguf_decode(b, qtype).astype(np.float64)
        ee += (weight * (exact - decoded) ** 2).sum()
        xx += (weight * exact**2).sum()
        xy += (weight * exact * decoded).sum()
        yy += (weight * decoded**2).sum()
    return ee / xx, max(0.0, 1 - xy * xy / (xx * yy))


def measure(
    qtype: QuantType,
    name: str,
    xs: Matrices,
    with_importance: bool,
    repeats: int,
    effort: Effort,
    threads: ThreadPoolExecutor,
    n_threads: int,
) -> Measurement:
    """Encode with both, in turn, and compare."""

    def in_parts(encoder: Callable[[F32, F32 | None], U8]) -> list[U8]:
        parts = [(part, w) for x, w in pairs for part in np.array_split(x, n_threads)]
        return list(threads.map(lambda p: encoder(*p), parts))

    def ours_of(x: F32, w: F32 | None) -> U8:
        return encode(x, qtype, w, effort=effort)

    def theirs_of(x: F32, w: F32 | None) -> U8:
        return ggml_encode(x, qtype, w)

    xs = [x for x in xs if x.shape[1] % qtype.block_size == 0]
    ws: list[F32 | None] = [importance_of(x) if with_importance else None for x in xs]
    pairs = list(zip(xs, ws, strict=True))
    theirs_of(xs[0][:1], ws[0])  # the first call of some types builds tables, for up to 8 s
    ours = theirs = float("inf")
    for _ in range(repeats):
        theirs = min(theirs, seconds(lambda: in_parts(theirs_of)))
        ours = min(ours, seconds(lambda: in_parts(ours_of)))
    million = sum(x.size for x in xs) / 1e6
    ggml = errors(xs, ws, [theirs_of(x, w) for x, w in pairs], qtype)
    own = errors(xs, ws, [ours_of(x, w) for x, w in pairs], qtype)
    return Measurement(
        qtype.name,
        with_importance,
        name,
        million / theirs,
        million / ours,
        ggml[0],
        own[0],
        ggml[1],
        own[1],
    )


def table_of(rows: list[Measurement], title: str) -> Table:
    """Lay the measurements out."""
    table = Table(title=title, box=None, pad_edge=False)
    for column in ("type", "imp.", "weights"):
        table.add_column(column)
    for column in ("ggml Mw/s", "ours Mw/s", "speed", "ggml error", "ours error", "ratio"):
        table.add_column(column, justify="right")
    for column in ("ggml 1-cos2", "ours 1-cos2", "ratio"):
        table.add_column(column, justify="right")
    for m in rows:
        table.add_row(
            m.type,
            "yes" if m.importance else "-",
            m.weights,
            f"{m.ggml_mws:.1f}",
            f"{m.ours_mws:.1f}",
            f"{m.speed:.2f}x",
            f"{m.ggml_error:.3e}",
            f"{m.ours_error:.3e}",
            f"{m.error:.3f}",
            f"{m.ggml_angle:.3e}",
            f"{m.ours_angle:.3e}",
            f"{m.angle:.3f}",
        )
    return table


def main() -> None:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", help="comma-separated; default: all")
    parser.add_argument("--isa", choices=isas(), help="default: the fastest of this CPU")
    parser.add_argument("--effort", choices=EFFORTS, default="normal")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    if arguments.isa:
        os.environ["DYNQUANT_ISA"] = arguments.isa
    names = arguments.types.upper().split(",") if arguments.types else list(ALL)
    kinds = list(matrices())
    n, effort = arguments.threads, arguments.effort
    with ThreadPoolExecutor(n) as threads:
        rows = [
            measure(ALL[name], kind, xs, with_importance, arguments.repeats, effort, threads, n)
            for name in names
            for with_importance in (True, False)
            if with_importance or not requires_importance(ALL[name])
            for kind, xs in kinds
        ]
    title = f"{n} thread{'s' * (n > 1)}, ISA {active_isa()}, effort {effort}"
    Console(width=130).print(table_of(rows, title))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(m) for m in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
