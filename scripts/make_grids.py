#!/usr/bin/env python3
"""Make dynquant/quants/csrc/grids.h from the grids of the gguf package.

    python scripts/make_grids.py > dynquant/quants/csrc/grids.h

A grid is a set of points whose coordinates have few levels. The encoder takes a point apart into
two halves, numbers each by its levels (half = l0 + L l1 + L^2 l2 ..., L the number of levels), and
walks the points sorted by their first half.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from gguf import quants

HEADER = """\
/* The codebooks of the IQ types, made by scripts/make_grids.py from the gguf package's grids: do
 * not edit. A point is two halves; a half is the number whose digits, lowest first, are the levels
 * of its coordinates. For each grid:
 *
 *   key[code]       first half * N_HALVES + second half of the point with this code
 *   first[h]        where the points whose first half is h begin in the two lists below;
 *                   first[N_HALVES] is the number of points
 *   second[k]       second halves, sorted by first half
 *   code[k]         the codes of these points
 */
#pragma once

#include <stdint.h>
"""

GRIDS = {
    "iq1": quants.IQ1_S,
    "iq2_xxs": quants.IQ2_XXS,
    "iq2_xs": quants.IQ2_XS,
    "iq2_s": quants.IQ2_S,
    "iq3_xxs": quants.IQ3_XXS,
    "iq3_s": quants.IQ3_S,
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


def grid(name: str, points: np.ndarray) -> str:
    """Return the arrays of one grid; points is float [n_points, dim]."""
    values = np.unique(points)
    both = halves(np.searchsorted(values, points), len(values))
    n_halves = len(values) ** (points.shape[1] // 2)
    order = np.lexsort((both[:, 1], both[:, 0]))
    first = np.searchsorted(both[order, 0], np.arange(n_halves + 1))
    shown = ", ".join(f"{v:g}" for v in values)
    return "\n".join(
        [
            f"/* {len(points)} points of {points.shape[1]} coordinates with levels {shown} */",
            array("uint16_t", f"{name}_key", (int(a * n_halves + b) for a, b in both)),
            array("uint16_t", f"{name}_first", map(int, first)),
            array("uint8_t", f"{name}_second", map(int, both[order, 1])),
            array("uint16_t", f"{name}_code", map(int, order)),
        ]
    )


def main() -> None:
    """Print the header."""
    print(HEADER)
    for name, quant in GRIDS.items():
        quant.init_grid()
        assert quant.grid is not None
        points = quant.grid.reshape(quant.grid.shape[-2:])
        print(grid(name, points))


if __name__ == "__main__":
    main()
