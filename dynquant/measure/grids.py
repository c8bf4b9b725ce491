"""Tensors of floats that lie on the grid of a quant type: models trained for it, or made of it.

A few rows of each tensor are read. Most tensors are ruled out by the first of them: 32 weights of a
4-bit type have at most 16 values, and those of other models nearly always 30 or more. The rows of
the others are encoded, and belong to the first type whose blocks reproduce them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.arrays import F32, U8
from dynquant.part_cache import Parts
from dynquant.quants import ALL, CORE, Batch, NotFiniteError, QuantType, decode
from dynquant.quants.on_grid import fit_of
from dynquant.stored_files import REQUESTS_AT_ONCE
from dynquant.tensors import ShardFile, TensorSource, parts_of, row_bytes

GRIDS = ("Q1_0", "TQ2_0", "Q2_0", "MXFP4", "Q4_0")
"""The types whose grids are looked for, from the fewest bits to the most. NVFP4 is not among them:
checkpoints have a factor beside its scales, which floats do not show."""

EQUIVALENT = {"TQ2_0": ("TQ2_0", "TQ1_0", "Q2_0")}
"""Types that reproduce the same weights, where it is not only the type itself."""

ROWS = 3
"""Rows that are read of a tensor, in equal distances."""

_PARTS: type[Parts[Any]] = Parts
"""Sources with parts compute a whole part for the first of its rows."""

_BLOCK, _VALUES = 32, 16
_LOOK = 1024
"""Weights of the first row whose values are counted."""
_EVIDENCE = 64
"""Weights that are not zero, in the rows that were read: fewer show nothing."""


@dataclass(frozen=True)
class OnGrid:
    """The grid of a tensor, as far as its rows were read.

    exact: whether blocks give the weights, rounded to their stored type; else only up to the
           rounding of scales to F16
    """

    type: QuantType
    exact: bool

    def is_reproduced_by(self, qtype: QuantType) -> bool:
        """Whether blocks of a type give the same weights."""
        return qtype.name in EQUIVALENT.get(self.type.name, (self.type.name,))


def find_grids(tensors: Iterable[ModelTensor], *, all_sources: bool) -> dict[str, OnGrid]:
    """Return the grid of each tensor that lies on one, by name.

    all_sources: read rows of transposed tensors, too, which takes a whole matrix for each

    Raises CheckpointError if rows cannot be read.
    """
    wanted = [t for t in tensors if _may_lie(t, all_sources=all_sources)]
    if any(f.file.is_remote for t in wanted for f in parts_of(t.source, ShardFile, alike=True)):
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            grids = list(pool.map(grid_of, (t.source for t in wanted)))
    else:
        grids = [grid_of(t.source) for t in wanted]
    return {t.name: g for t, g in zip(wanted, grids, strict=True) if g is not None}


def _may_lie(tensor: ModelTensor, *, all_sources: bool) -> bool:
    source = tensor.source
    return (
        tensor.kept is None
        and source.stored.is_float
        and source.stored.name in ALL
        and len(tensor.shape) > 1
        and tensor.n_per_row % _BLOCK == 0
        and tensor.n_rows > 0
        and (all_sources or next(parts_of(source, _PARTS, alike=True), None) is None)
    )


def grid_of(source: TensorSource) -> OnGrid | None:
    """Return the grid of a matrix or a stack of matrices; None if it lies on none.

    Raises CheckpointError if rows cannot be read.
    """
    n_per_row = source.shape[-1]
    rows: list[U8] = []
    for stored in _rows(source):
        if not _has_few_values(decode(stored, source.stored, n_per_row)[0, :_LOOK]):
            return None
        rows.append(stored)
    sample = np.concatenate(rows)
    x = decode(sample, source.stored, n_per_row)
    if not np.isfinite(x).all() or np.count_nonzero(x) < _EVIDENCE or x.min() >= 0 or x.max() <= 0:
        return None
    for name in GRIDS:
        qtype = ALL[name]
        if n_per_row % qtype.block_size:
            continue
        try:
            blocks = CORE.encode(
                Batch(sample.reshape(-1), source.stored, n_per_row, qtype), measure=False
            ).blocks
        except NotFiniteError:
            return None
        fit = fit_of(sample, source.stored, n_per_row, qtype, blocks)
        if fit.beside is None:
            return OnGrid(qtype, exact=fit.n_rounded == 0)
    return None


def _rows(source: TensorSource) -> Iterator[U8]:
    """Yield rows in equal distances, uint8 [1, bytes]; the last row is not among them."""
    n = 1
    for size in source.shape[:-1]:
        n *= size
    for row in sorted({n * k // (ROWS + 1) for k in range(1, ROWS + 1)}):
        found = np.empty((1, row_bytes(source)), np.uint8)
        source.read(row, row + 1, found.reshape(-1))
        yield found


def _has_few_values(x: F32) -> bool:
    """Whether no block of weights has more values than a 4-bit type has."""
    ordered = np.sort(x.reshape(-1, _BLOCK), axis=1)
    return bool(((np.diff(ordered, axis=1) != 0).sum(axis=1) < _VALUES).all())
