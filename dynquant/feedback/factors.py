"""The factors of a model's second moments, made when a matrix first needs one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from dynquant.arrays import F32, F64
from dynquant.errors import EncodeError, ImportanceError
from dynquant.feedback.crew import Crew
from dynquant.importance.moments import Input, Moments
from dynquant.quants.feedback import Factor, Run, factor_bytes, factor_of, panels_of

KEPT = 2
"""Factors in memory: of the tensor that threads are at, and of the next one."""

Key = tuple[str, int, float]


def memory_of(inputs: Iterable[Input]) -> int:
    """Return the bytes that the factors of some inputs need at most: the widest, and what it is
    made of.
    """
    widths = [each.n for each in inputs]
    return max((KEPT * factor_bytes(n) + n * (n - 1) for n in widths), default=0)


class Factors:
    """Makes factors; callable from several threads, which help each other with a large one."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self._lock = threading.Lock()
        self._crews: OrderedDict[Key, Crew[Factor]] = OrderedDict()

    def of(self, tensor: str, matrix: int, damping: float) -> Factor:
        """Return the factor of the correlations of a matrix's inputs.

        Matrices without own correlations in the file share those of all.

        Raises ImportanceError if the file of moments was changed or damaged.
        """
        each = self.moments.inputs[tensor]
        row = matrix if each.n_moments > 1 else 0
        key = each.name, row, damping
        with self._lock:
            crew = self._crews.pop(key, None) or Crew(
                lambda run: self._factor(tensor, row, damping, run)
            )
            self._crews[key] = crew
            while len(self._crews) > KEPT:
                self._crews.popitem(last=False)
        return crew.result()

    def _factor(self, tensor: str, row: int, damping: float, run: Run) -> Factor:
        each = self.moments.inputs[tensor]
        correlations = self.moments.row(tensor, "correlations", row)
        try:
            return factor_of(correlations, each.n, damping, run)
        except EncodeError as e:
            raise ImportanceError(f"{self.moments.path}: {each.name}: {e}") from e

    def held_out(self, tensor: str, matrix: int, importance: F32) -> F32:
        """Return sums of held-out inputs of a matrix, as `output_errors` takes them.

        importance: of the matrix; where experts share sums, these get its sizes

        Raises ImportanceError if the file of moments was changed or damaged.
        """
        each = self.moments.inputs[tensor]
        sums: F32 = self.moments.row(tensor, "held_out", matrix if each.n_moments > 1 else 0)
        if each.n_matrices > each.n_moments:
            squares: F64 = self.moments.row(tensor, "squares").astype(np.float64)
            counts = self.moments.row(tensor, "counts").astype(np.float64)
            of_all = (squares * counts[:, None]).sum(axis=0) / max(1.0, counts.sum())
            ratio = np.divide(importance, of_all, out=np.zeros_like(of_all), where=of_all > 0)
            sums = (sums * np.sqrt(ratio)).astype(np.float32)
        return panels_of(sums)
