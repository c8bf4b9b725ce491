#!/usr/bin/env python3
"""Hashes of everything that the C core encodes and decodes: has a change altered any byte?

    python scripts/checks/show_encoder_hashes.py [--types Q4_K] [--isas v3] [--seeds 8] > before.txt

Run the same script with the builds of two commits and compare the outputs with `diff`. Each line is
a type, an ISA, a case and a hash:

    encode     effort, weighting, gain; rows of many magnitudes and shapes, with importance and
               without, stored as F32, F16 and BF16
    decode     random bytes
    errors     the sums of the rows and of what their blocks decode to

The rows are normal weights and heavy tails, zeros, single weights, huge and tiny numbers, and
numbers of blocks that leave the last batch of an encoder unfilled.

NumPy's exp, power and random numbers differ among machines and versions in the last bit. To compare
machines, make the rows on one (`--rows rows.npz` writes a file that does not exist), and let the
others read that file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.quants import ALL, QuantType, decode, encode, isas
from dynquant.quants.codec import encode_floats, error_sums
from dynquant.quants.search import EFFORTS, GAINS, WEIGHTINGS, Search
from dynquant.quants.table import FLOATS

STORED: dict[str, F32] = {}
"""Rows and importances that were made or read, by what they are."""


def stored(name: str, made: Iterable[F32]) -> Iterator[F32]:
    """Yield arrays that are made when a name is used first."""
    if f"{name} 0" not in STORED:
        STORED.update({f"{name} {n}": array for n, array in enumerate(made)})
    n = 0
    while (array := STORED.get(f"{name} {n}")) is not None:
        yield array
        n += 1


def matrices(seed: int) -> Iterator[F32]:
    """Yield float32 [n_rows, n_per_row]; n_per_row is a multiple of every block size."""
    yield from stored(f"rows {seed}", made_matrices(seed))


def made_matrices(seed: int) -> Iterator[F32]:
    """Make the rows of a seed."""
    rng = np.random.default_rng(seed)
    yield (0.02 * rng.standard_normal((3, 1024))).astype(np.float32)
    heavy = 0.02 * rng.standard_t(3, (5, 768))
    heavy[rng.random(heavy.shape) < 2e-3] *= 8
    yield heavy.astype(np.float32)
    for n_blocks in (1, 2, 3):
        yield rng.laplace(0, 0.1, (1, 256 * n_blocks)).astype(np.float32)
    yield np.stack(list(unusual_rows(rng)))


def unusual_rows(rng: np.random.Generator) -> Iterator[F32]:
    """Yield rows of 512 weights that no model has, or few."""
    normal = rng.standard_normal(512).astype(np.float32)
    yield np.zeros(512, np.float32)
    yield np.full(512, -0.0, np.float32)
    yield np.where(np.arange(512) == 300, np.float32(-3), np.float32(0))
    yield np.where(np.arange(512) // 32 % 2 == 0, normal, np.float32(0))
    yield np.full(512, 0.25, np.float32)
    yield np.abs(normal)
    yield -np.abs(normal) - 10
    yield normal * np.float32(1e-3) + 5
    for factor in (1e-40, 1e-30, 3e-7, 1e5, 1e30, 8e37):
        yield normal * np.float32(factor)
    yield np.float32(10) ** rng.uniform(-38, 38, 512).astype(np.float32)
    yield rng.integers(-3, 4, 512).astype(np.float32)


def importances(seed: int, n: int) -> Iterator[F32]:
    """Yield float32 [n]: spread as in imatrix files, and with zeros and extremes."""
    yield from stored(f"importance {seed} {n}", made_importances(seed, n))


def made_importances(seed: int, n: int) -> Iterator[F32]:
    """Make the importances of a seed."""
    rng = np.random.default_rng(seed)
    yield np.exp(rng.standard_normal(n)).astype(np.float32)
    wide = np.float32(10) ** rng.uniform(-30, 30, n).astype(np.float32)
    yield np.where(np.arange(n) // 32 % 3 == 0, np.float32(0), wide)


def encoded(qtype: QuantType, search: Search, seed: int) -> Iterator[U8]:
    """Yield the blocks of all rows with all importances."""
    for x in matrices(seed):
        for w in (None, *importances(seed, x.shape[1])):
            yield encode(
                x, qtype, w, effort=search.effort, weighting=search.weighting, gain=search.gain
            )


def encoded_from_halves(qtype: QuantType, seed: int) -> Iterator[U8]:
    """Yield the blocks of rows that are stored as F16 and as BF16."""
    for stored in (FLOATS["F16"], FLOATS["BF16"]):
        for x in matrices(seed):
            rows = encode(x, stored)
            out = np.empty((len(x), qtype.row_size(x.shape[1])), np.uint8)
            encode_floats(rows, stored, x.shape[1], qtype, out)
            yield out


def decoded(qtype: QuantType, seed: int) -> Iterator[F32]:
    """Yield the weights of random bytes; every NaN has the same bits."""
    rng = np.random.default_rng(seed)
    for n_rows in (1, 7, 40):
        blocks = rng.integers(0, 256, (n_rows, qtype.row_size(768)), np.uint8)
        x = decode(blocks, qtype, 768)
        x[np.isnan(x)] = np.nan
        yield x


def sums(qtype: QuantType, seed: int) -> Iterator[F32]:
    """Yield the error sums of all rows, float64 [5]."""
    for x in matrices(seed):
        for w in (None, *importances(seed, x.shape[1])):
            blocks = encode(x, qtype, w)
            rows = x.view(np.uint8)
            yield np.array(error_sums(rows, ALL["F32"], x.shape[1], qtype, blocks, w))


def searches() -> Iterator[Search]:
    """Yield every effort, and at normal effort every other choice of what is minimised."""
    for effort in EFFORTS:
        yield Search(effort, "importance", "least-squares")
    for weighting in WEIGHTINGS:
        for gain in GAINS:
            if (weighting, gain) != ("importance", "least-squares"):
                yield Search("normal", weighting, gain)


def hash_of(arrays: Iterator[np.ndarray]) -> str:
    """Return one hash of all arrays in turn."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(np.ascontiguousarray(array).view(np.uint8))
    return state.hexdigest()[:24]


def main() -> None:
    """Print a line for each type, ISA and case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", help="comma-separated; default: all")
    parser.add_argument("--isas", help="comma-separated; default: all that this CPU runs")
    parser.add_argument("--seeds", type=int, default=1, help="how many sets of random rows")
    parser.add_argument("--rows", type=Path, help="file of the rows: read, or written if missing")
    arguments = parser.parse_args()
    if arguments.rows and arguments.rows.exists():
        STORED.update(np.load(arguments.rows))
    names = arguments.types.upper().split(",") if arguments.types else list(ALL)
    for isa in arguments.isas.split(",") if arguments.isas else isas():
        os.environ["DYNQUANT_ISA"] = isa
        for qtype in map(ALL.__getitem__, names):
            for seed in range(arguments.seeds):
                cases = {
                    f"encode {s.effort} {s.weighting} {s.gain}": encoded(qtype, s, seed)
                    for s in searches()
                }
                cases["encode from halves"] = encoded_from_halves(qtype, seed)
                cases["decode"] = decoded(qtype, seed)
                cases["errors"] = sums(qtype, seed)
                for case, arrays in cases.items():
                    print(f"{qtype.name:8} {isa:8} seed {seed} {case:40} {hash_of(arrays)}")
    if arguments.rows and not arguments.rows.exists():
        np.savez(arguments.rows, **STORED)


if __name__ == "__main__":
    main()
