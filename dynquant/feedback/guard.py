"""Whether error feedback is used for a matrix: only if its outputs on held-out text gain by it.

A sample of the matrix's rows is encoded both ways. The held-out sums of the file of moments judge:
|e S'|^2 of a row, e the errors of its weights (importance/moments.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import fsum, nan

import numpy as np

from dynquant.arrays import F32
from dynquant.quants.codec import NotFiniteError, decode
from dynquant.quants.encoder import CORE, Batch
from dynquant.quants.feedback import Feedback, output_errors
from dynquant.quants.table import ALL, FLOATS
from dynquant.tensors import TensorSource, row_bytes

RUNS, ROWS = 4, 16
"""Runs of neighbouring rows that are encoded both ways, and rows of each."""


@dataclass(frozen=True)
class Gain:
    """What a sample of a matrix's rows loses on held-out text.

    plain, feedback: sums of |e S'|^2, with the importance alone and with feedback
    """

    plain: float
    feedback: float

    @property
    def is_taken(self) -> bool:
        """Whether the matrix is encoded with feedback."""
        return self.feedback < self.plain


def sampled(first: int, n_rows: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of rows of a matrix that are sampled: all of a small one."""
    if n_rows <= RUNS * ROWS:
        yield first, first + n_rows
        return
    for k in range(RUNS):
        start = first + (n_rows - ROWS) * k // (RUNS - 1)
        yield start, start + ROWS


def gain_of(
    source: TensorSource, first: int, n_rows: int, batch: Batch, feedback: Feedback, panels: F32
) -> Gain:
    """Encode a sample of a matrix's rows both ways.

    first, n_rows: of the matrix in its tensor
    batch:         how its rows are encoded without feedback; its rows are not used
    panels:        the held-out sums (`Factors.held_out`)

    A sample with a number that is not finite gives no gain: the encoder will name its row.

    Raises CheckpointError if the rows cannot be read.
    """
    runs: list[np.ndarray] = []
    for start, stop in sampled(first, n_rows):
        rows = np.empty((stop - start) * row_bytes(source), np.uint8)
        source.read(start, stop, rows)
        runs.append(rows)
    rows, stored, n = np.concatenate(runs), batch.stored, batch.n_per_row
    if stored.name not in FLOATS:
        rows = decode(rows.reshape(-1, stored.row_size(n)), stored, n).reshape(-1).view(np.uint8)
        stored = ALL["F32"]
    plain = replace(batch, rows=rows, stored=stored)

    def lost(batch: Batch) -> float:
        blocks = CORE.encode(batch, measure=False).blocks
        return fsum(output_errors(rows, stored, n, batch.type, blocks, panels))

    try:
        return Gain(lost(plain), lost(replace(plain, feedback=feedback)))
    except NotFiniteError:
        return Gain(nan, nan)
