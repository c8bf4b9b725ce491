"""What each type would do to each tensor: errors of outputs, from a sample of the rows.

Rows are encoded as a conversion would encode them: with the importance, with error feedback where
the plan has it. The same model gives the same numbers on every machine, for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import fsum

import numpy as np
import xxhash

from dynquant.arrays import F32, U8
from dynquant.budget.groups import Group
from dynquant.errors import ConvertError
from dynquant.feedback.factors import Factors
from dynquant.plan.objective import search_for
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.quants.codec import NotFiniteError, decode
from dynquant.quants.encoder import CORE, Batch, Encoder, uses_means
from dynquant.quants.feedback import Feedback, output_errors
from dynquant.quants.table import ALL, FLOATS, QuantType
from dynquant.tensors import TensorSource, row_bytes

WEIGHTS = 1 << 19
"""Weights of a tensor that are encoded with each type, about; all of a smaller one."""

RUN = 16
"""Neighbouring rows of a sample: the encoders work on so many at a time."""

MIN_RUNS = 4


@dataclass(frozen=True)
class TensorErrors:
    """What types do to a tensor.

    relative: by type name, the error of its outputs relative to the outputs, in the mean square: on
              the held-out text of the moments, or else as if inputs were not correlated
    of_text:  whether it is on held-out text
    rows:     XXH3-128 of the stored rows that were sampled
    """

    relative: Mapping[str, float]
    of_text: bool
    rows: str


@dataclass(frozen=True)
class _Run:
    """Rows start..stop of one matrix of a tensor."""

    matrix: int
    start: int
    stop: int


def runs_of(n_rows: int, n_matrices: int, n_per_row: int, weights: int = WEIGHTS) -> list[_Run]:
    """Return runs of rows, in equal distances over all matrices; all rows of a small tensor.

    A run does not leave its matrix.
    """
    rows_of_matrix = n_rows // n_matrices
    n = max(MIN_RUNS, weights // (RUN * n_per_row))
    starts = range(0, rows_of_matrix, RUN)
    every = [(m, start) for m in range(n_matrices) for start in starts]
    taken = every if n >= len(every) else [every[k * (len(every) - 1) // (n - 1)] for k in range(n)]
    return [
        _Run(
            m,
            m * rows_of_matrix + start,
            m * rows_of_matrix + min(start + RUN, rows_of_matrix),
        )
        for m, start in taken
    ]


def measure_errors(
    plan: Plan,
    groups: Iterable[Group],
    *,
    threads: int,
    weights: int = WEIGHTS,
    encoder: Encoder = CORE,
    progress: Callable[[int], None] | None = None,
) -> dict[str, TensorErrors]:
    """Return the errors of every tensor of some groups, for the types that its group can have.

    weights:  of a tensor that are encoded with each type, about
    progress: called with the number of tensors that are done, in one of the threads

    Raises ConvertError for weights that are not finite, and what reading rows and moments raises.
    """
    factors = Factors(plan.moments) if plan.moments else None
    wanted = [(t, group.types) for group in groups for t in group.tensors]
    found: dict[str, TensorErrors] = {}

    def measure(given: tuple[TensorPlan, tuple[QuantType, ...]]) -> TensorErrors:
        return _Tensor(plan, given[0], factors, weights, encoder).errors(given[1])

    with ThreadPoolExecutor(threads) as pool:
        for (t, _), errors in zip(wanted, pool.map(measure, wanted), strict=True):
            found[t.name] = errors
            if progress:
                progress(len(found))
    return found


class _Tensor:
    """A tensor, and what is known of its inputs."""

    def __init__(
        self,
        plan: Plan,
        tensor: TensorPlan,
        factors: Factors | None,
        weights: int,
        encoder: Encoder,
    ) -> None:
        self._plan, self._tensor, self._encoder = plan, tensor, encoder
        self._source: TensorSource = plan.sources[tensor.name].source
        self._importance = plan.importance.get(tensor.name)
        self._search = search_for(tensor.name, plan.effort)
        self._setting = plan.feedback.get(tensor.name)
        # Without importance, its inputs' sizes are not known, and no moments are used.
        has_moments = factors is not None and tensor.name in factors.moments.inputs
        self._factors = factors if has_moments and self._importance else None
        self._n_rows = tensor.n_weights // tensor.n_per_row
        self._weights = weights

    def errors(self, types: Iterable[QuantType]) -> TensorErrors:
        """Encode a sample with each type."""
        types = list(types)
        n_matrices = self._importance.n_matrices if self._importance else 1
        digest = xxhash.xxh3_128()
        sums: dict[str, list[tuple[float, float]]] = {t.name: [] for t in types}
        by_matrix: dict[int, list[_Run]] = {}
        for run in runs_of(self._n_rows, n_matrices, self._tensor.n_per_row, self._weights):
            by_matrix.setdefault(run.matrix, []).append(run)
        for matrix, runs in by_matrix.items():
            rows = np.concatenate([self._read(run) for run in runs])
            digest.update(rows.data)
            for qtype, pair in self._of_matrix(matrix, rows, types):
                sums[qtype.name].append(pair)
        relative = {name: _ratio(pairs) for name, pairs in sums.items()}
        return TensorErrors(relative, self._factors is not None, digest.hexdigest())

    def _read(self, run: _Run) -> U8:
        rows = np.empty((run.stop - run.start) * row_bytes(self._source), np.uint8)
        self._source.read(run.start, run.stop, rows)
        return rows

    def _of_matrix(
        self, matrix: int, rows: U8, types: Iterable[QuantType]
    ) -> Iterator[tuple[QuantType, tuple[float, float]]]:
        """Yield each type with the squares of errors and of outputs, summed over a sample."""
        n, stored = self._tensor.n_per_row, self._source.stored
        if stored.name not in FLOATS:
            blocks = rows.reshape(-1, stored.row_size(n))
            rows, stored = decode(blocks, stored, n).reshape(-1).view(np.uint8), ALL["F32"]
        importance = self._importance.of(matrix) if self._importance else None
        mean = self._importance.mean(matrix) if self._importance else None
        share = self._share(matrix)
        panels, feedback = None, None
        if self._factors is not None and importance is not None:
            panels = self._factors.held_out(self._tensor.name, matrix, importance)
            if self._setting:
                factor = self._factors.of(self._tensor.name, matrix, self._setting.damping)
                feedback = Feedback(factor, importance, self._setting.sweeps)
        for qtype in types:
            batch = Batch(
                rows,
                stored,
                n,
                qtype,
                importance,
                self._search,
                mean if uses_means(qtype) else None,
                None if qtype.is_float else feedback,
            )
            lost, whole = self._lost(batch, panels)
            yield qtype, (share * lost, share * whole)

    def _lost(self, batch: Batch, panels: F32 | None) -> tuple[float, float]:
        judge = None if batch.type.is_float else panels
        try:
            encoded = self._encoder.encode(batch, measure=judge is None)
        except NotFiniteError as e:
            raise ConvertError(
                f"tensor {self._tensor.name!r}: a weight is not finite (NaN or infinity); the"
                " checkpoint is damaged or not complete"
            ) from e
        if judge is None:
            return encoded.sums.difference, encoded.sums.original
        n, stored = batch.n_per_row, batch.stored
        nothing = np.zeros_like(encoded.blocks)  # zeros decode to zeros, in all types with blocks
        whole = output_errors(batch.rows, stored, n, batch.type, nothing, judge)
        lost = output_errors(batch.rows, stored, n, batch.type, encoded.blocks, judge)
        return fsum(lost), fsum(whole)

    def _share(self, matrix: int) -> float:
        """Return the part of all tokens that a matrix is multiplied by."""
        its = self._importance
        if its is None or not its.is_counted:
            return 1.0
        return its.sums(matrix)[1] / sum(its.sums(m)[1] for m in range(its.n_matrices))


def _ratio(pairs: Iterable[tuple[float, float]]) -> float:
    pairs = list(pairs)
    whole = fsum(w for _, w in pairs)
    return fsum(lost for lost, _ in pairs) / whole if whole else 0.0
