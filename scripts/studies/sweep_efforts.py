#!/usr/bin/env python3
"""Vary one field of an encoder's effort: the error and the speed at each value.

    python scripts/studies/sweep_efforts.py Q4_K normal ends 4 5 6 7 8
    python scripts/studies/sweep_efforts.py IQ2_S best scan_scales 1 2 3 4 --rows 16

The fields are those of the effort tables in dynquant/quants/csrc. For each value the block's file
is copied with that value and compiled (`cc`, or CC); the installed dynquant decodes. Rows are
normal and Student-t weights, importances are log-normal, as in bench_encoders.py; both are measured
with importance and without, one thread. Columns:

    error    sum w (x - decoded)^2 / sum w x^2 over the rows of both kinds
    Mw/s     million weights per second

The value of the source is marked with an asterisk. The figures depend on the rows: compare values
that differ by little with several --seed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.quants import QuantType, decode, quant_type
from dynquant.quants.search import EFFORTS

CSRC = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists()) / (
    "dynquant/quants/csrc"
)
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-w")
SOURCE = """
#include "{file}.h"
void sweep_encode(const float *x, const float *w, uint8_t *bytes, int64_t n, int effort)
{{
    struct weights in = {{x, w, {block_size}, {block_size}}};
    struct block_{file} *blocks = (struct block_{file} *)bytes;
    for (int64_t b = 0; b < n; b += LANES / {lanes})
        encode_{file}(weights_from_block(in, b), blocks + b,
                      n - b < LANES / {lanes} ? (int)(n - b) : LANES / {lanes},
                      (enum effort)effort);
}}
"""


def entry_of(text: str, effort: str) -> tuple[int, int]:
    """Return where the effort's entry of a block file begins and ends."""
    found = re.search(rf"\[EFFORT_{effort.upper()}\] = \{{", text)
    if not found:
        sys.exit("this type has no effort table with named fields")
    depth, end = 1, found.end()
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return found.end(), end


def with_value(text: str, effort: str, field: str, value: str) -> tuple[str, str]:
    """Return a block file's text with another value, and the value that it has."""
    start, end = entry_of(text, effort)
    number = re.compile(rf"(\.{re.escape(field)} = )([-+.\w]+)")
    found = number.search(text, start, end)
    if not found:
        sys.exit(f"the effort has no field {field!r}: {' '.join(text[start : end - 1].split())}")
    return text[: found.start(2)] + value + text[found.end(2) :], found[2]


class Encoder:
    """An encoder compiled with one changed value."""

    def __init__(self, qtype: QuantType, effort: str, text: str, march: str) -> None:
        name = qtype.name.lower()
        rows = (CSRC / "types.c").read_text()
        row = re.search(rf"T\({qtype.name}, \w+, \d+, \d+, (\d+)\)", rows)
        assert row is not None
        self._qtype, self._effort = qtype, EFFORTS.index(effort)
        with tempfile.TemporaryDirectory() as folder:
            for header in CSRC.glob("*.h"):
                shutil.copy(header, folder)
            (Path(folder) / f"{name}.h").write_text(text)
            source = SOURCE.format(file=name, block_size=qtype.block_size, lanes=row[1])
            library = Path(folder) / "sweep.so"
            command = [os.environ.get("CC", "cc"), *FLAGS, f"-march={march}", "-I", folder]
            command += ["-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-lm"]
            subprocess.run(command, input=source, text=True, check=True)
            self._encode = ctypes.CDLL(str(library)).sweep_encode

    def __call__(self, x: F32, w: F32 | None) -> U8:
        """Encode rows; w has an importance for each weight."""
        blocks = np.empty((len(x), self._qtype.row_size(x.shape[1])), np.uint8)
        self._encode(
            ctypes.c_void_p(x.ctypes.data),
            ctypes.c_void_p(None if w is None else w.ctypes.data),
            ctypes.c_void_p(blocks.ctypes.data),
            ctypes.c_int64(x.size // self._qtype.block_size),
            ctypes.c_int(self._effort),
        )
        return blocks


def weights(n_rows: int, seed: int) -> F32:
    """Return rows of normal weights, and as many with heavy tails."""
    rng = np.random.default_rng(seed)
    normal, heavy = rng.standard_normal((n_rows, 4096)), rng.standard_t(5, (n_rows, 4096))
    return (0.02 * np.concatenate([normal, heavy])).astype(np.float32)


def measure(encoder: Encoder, qtype: QuantType, x: F32, w: F32 | None) -> tuple[float, float]:
    """Return the error and the speed in million weights per second, the best of five."""
    seconds = float("inf")
    blocks = encoder(x, w)
    for _ in range(5):
        start = time.process_time()
        encoder(x, w)
        seconds = min(seconds, time.process_time() - start)
    exact, weight = x.astype(np.float64), 1.0 if w is None else w.astype(np.float64)
    difference = exact - decode(blocks, qtype, x.shape[1])
    error = (weight * difference**2).sum() / (weight * exact**2).sum()
    return float(error), x.size / 1e6 / seconds


def main() -> None:
    """Print a line for each value."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("type")
    parser.add_argument("effort", choices=EFFORTS)
    parser.add_argument("field", help="of the effort's entry, such as ends, step or ls_reach")
    parser.add_argument("values", nargs="+")
    parser.add_argument("--rows", type=int, default=64, help="of each kind of weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--march", default="native")
    arguments = parser.parse_args()
    qtype = quant_type(arguments.type)
    text = (CSRC / f"{qtype.name.lower()}.h").read_text()
    x = weights(arguments.rows, arguments.seed)
    row = np.random.default_rng(arguments.seed + 1).lognormal(0, 1, x.shape[1])
    w = np.ascontiguousarray(np.broadcast_to(row.astype(np.float32), x.shape))
    heads = ("error", "Mw/s", "error, no imp.", "Mw/s")
    print(f"{arguments.field:>14} {heads[0]:>12} {heads[1]:>8} {heads[2]:>14} {heads[3]:>8}")
    for value in arguments.values:
        changed, current = with_value(text, arguments.effort, arguments.field, value)
        encoder = Encoder(qtype, arguments.effort, changed, arguments.march)
        error, speed = measure(encoder, qtype, x, w)
        plain_error, plain_speed = measure(encoder, qtype, x, None)
        mark = "*" if value.rstrip("f") == current.rstrip("f") else " "
        print(f"{value:>13}{mark} {error:12.5e} {speed:8.1f}", end=" ")
        print(f"{plain_error:14.5e} {plain_speed:8.1f}")


if __name__ == "__main__":
    main()
