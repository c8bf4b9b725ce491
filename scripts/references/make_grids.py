#!/usr/bin/env python3
"""Make dynquant/quants/csrc/grids.h from the grids of the gguf package.

    python scripts/references/make_grids.py > dynquant/quants/csrc/grids.h

A grid is a set of points whose coordinates have few levels. The encoder splits each point into two
halves, numbers a half by its levels (half = l0 + L l1 + L^2 l2 ..., L the number of levels), and
iterates over the points in chunks with the same first half.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from gguf import quants

HEADER = """\
/* The codebooks of the IQ types, made by make_grids.py from the gguf package's grids: do
 * not edit. A point is two halves; a half is the number whose digits, lowest first, are the levels
 * of its coordinates. Points with the same first half stand together, in chunks of a fixed size; a
 * chunk that they do not fill repeats its last point. For each grid:
 *
 *   key[code]   first half * N_HALVES + second half of the point with this code
 *   first[c]    the first half of the points of chunk c
 *   second[k]   64 times the second half of the point in place k, chunk after chunk: where its cost
 *               stands in a table of sixteen f32 each, in bytes
 *   code[k]     its code
 */
#pragma once

#include <stdint.h>
"""

# Each grid with its chunk size: about a third of the points that share a first half. Then few
# places are wasted, and several points share the cost of a chunk.
GRIDS = {
    "iq1": (quants.IQ1_S, 8),
    "iq2_xxs": (quants.IQ2_XXS, 4),
    "iq2_xs": (quants.IQ2_XS, 4),
    "iq2_s": (quants.IQ2_S, 4),
    "iq3_xxs": (quants.IQ3_XXS, 4),
    "iq3_s": (quants.IQ3_S, 4),
}


def array(kind: str, name: str, values: Iterable[int]) -> str:
    """Return a C array, 100 columns wide."""
    items = list(values)
    lines, line = [], "   "
    for item in items:
        if len(line) + len(f" {item},") > 100:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return f"static const {kind} {name}[{len(items)}] = {{\n" + "\n".join([*lines, line]) + "\n};\n"


def halves(levels: np.ndarray, n_levels: int) -> np.ndarray:
    """Number the halves of points: int [n_points, dim] to int [n_points, 2]."""
    n_points, dim = levels.shape
    digits = n_levels ** np.arange(dim // 2)
    return (levels.reshape(n_points, 2, dim // 2) * digits).sum(axis=2)


def chunked(first: np.ndarray, size: int) -> tuple[list[int], list[int]]:
    """Return the chunks of points that share a first half.

    Returns the first half of each chunk, and the points in all places, chunk after chunk.
    """
    chunks: list[int] = []
    places: list[int] = []
    for half in np.unique(first):
        members = [int(i) for i in np.flatnonzero(first == half)]
        for at in range(0, len(members), size):
            chunk = members[at : at + size]
            chunks.append(int(half))
            places += chunk + chunk[-1:] * (size - len(chunk))
    return chunks, places


def grid(name: str, points: np.ndarray, size: int) -> str:
    """Return the arrays of one grid; points is float [n_points, dim]."""
    values = np.unique(points)
    both = halves(np.searchsorted(values, points), len(values))
    n_halves = len(values) ** (points.shape[1] // 2)
    chunks, places = chunked(both[:, 0], size)
    shown = ", ".join(f"{v:g}" for v in values)
    return "\n".join(
        [
            f"/* {len(points)} points of {points.shape[1]} coordinates with levels {shown} */",
            f"#define {name.upper()}_CHUNK {size}",
            f"#define {name.upper()}_CHUNKS {len(chunks)}",
            array("uint16_t", f"{name}_key", (int(a * n_halves + b) for a, b in both)),
            array("uint8_t", f"{name}_first", chunks),
            array("uint16_t", f"{name}_second", (64 * int(both[p, 1]) for p in places)),
            array("uint16_t", f"{name}_code", places),
        ]
    )


def main() -> None:
    """Print the header."""
    print(HEADER)
    for name, (quant, size) in GRIDS.items():
        quant.init_grid()
        assert quant.grid is not None
        points = quant.grid.reshape(quant.grid.shape[-2:])
        print(grid(name, points, size))


if __name__ == "__main__":
    main()
