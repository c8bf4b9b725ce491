"""Rows of a tensor that stand for all of them, and what is usual of its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.tensors import TensorSource, row_bytes

RUN = 16
"""Neighbouring rows of a sample: the encoders work on so many at a time."""

MIN_RUNS = 4

USUAL = 0.99
"""Part of the channels whose inputs count as they are."""


@dataclass(frozen=True)
class Run:
    """Rows start..stop of one matrix of a tensor."""

    matrix: int
    start: int
    stop: int


def runs_of(n_rows: int, n_matrices: int, n_per_row: int, weights: int) -> list[Run]:
    """Return runs of rows, in equal distances over all matrices; all rows of a small tensor.

    A run does not leave its matrix.

    weights: in all runs, about
    """
    rows_of_matrix = n_rows // n_matrices
    n = max(MIN_RUNS, weights // (RUN * n_per_row))
    starts = range(0, rows_of_matrix, RUN)
    every = [(m, start) for m in range(n_matrices) for start in starts]
    taken = every if n >= len(every) else [every[k * (len(every) - 1) // (n - 1)] for k in range(n)]
    return [
        Run(
            m,
            m * rows_of_matrix + start,
            m * rows_of_matrix + min(start + RUN, rows_of_matrix),
        )
        for m, start in taken
    ]


def read_runs(source: TensorSource, runs: Iterable[Run]) -> U8:
    """Return the stored bytes of some rows."""
    parts: list[U8] = []
    for run in runs:
        rows = np.empty((run.stop - run.start) * row_bytes(source), np.uint8)
        source.read(run.start, run.stop, rows)
        parts.append(rows)
    return np.concatenate(parts)


def usual_inputs(importance: F32) -> F32:
    """Return the mean squares of inputs, with those of a hundredth of the channels limited.

    The first token of a text has activations in a few channels that are a thousand times larger
    than any other's. They would be most of a mean square, and harm by an error next to nothing:
    the channels that all other tokens need would not count.
    """
    return np.minimum(importance, np.quantile(importance, USUAL, method="higher"))
