"""What each type would do to each tensor: relative errors, from a sample of the rows.

The error of a tensor is sum h e^2 / sum h w^2, with h the mean squares of its inputs, limited to
what is usual, encoded with the importance alone. Means of inputs and error feedback make the
outputs better than this sum says: where moments are there, it is multiplied by what they leave of
the outputs' error on held-out text.

The same model gives the same numbers on every machine, for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import fsum

import numpy as np
import xxhash

from dynquant.arrays import F32, U8
from dynquant.budget.groups import Group
from dynquant.budget.sample import Run, read_runs, runs_of, usual_inputs
from dynquant.errors import ConvertError
from dynquant.feedback.factors import Factors
from dynquant.plan.objective import search_for
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.quants.codec import NotFiniteError, decode, error_sums
from dynquant.quants.encoder import CORE, Batch, Encoded, Encoder, uses_means
from dynquant.quants.feedback import Feedback, output_errors
from dynquant.quants.table import ALL, FLOATS, QuantType
from dynquant.tensors import TensorSource

WEIGHTS = 1 << 19
"""Weights of a tensor that are encoded with each type, about; all of a smaller one."""


@dataclass(frozen=True)
class TensorErrors:
    """What types do to a tensor.

    relative: by type name, the relative error
    rows:     XXH3-128 of the stored rows that were sampled
    """

    relative: Mapping[str, float]
    rows: str


@dataclass
class _Sums:
    """Sums over a sample: errors and weights; output errors by importance alone, and at last."""

    lost: list[float] = field(default_factory=list[float])
    whole: list[float] = field(default_factory=list[float])
    plain: list[float] = field(default_factory=list[float])
    final: list[float] = field(default_factory=list[float])

    @property
    def relative(self) -> float:
        """The relative error; 0.0 for weights that are all zero."""
        whole, plain = fsum(self.whole), fsum(self.plain)
        left = min(1.0, fsum(self.final) / plain) if plain else 1.0
        return left * fsum(self.lost) / whole if whole else 0.0


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


def rows_hash(plan: Plan, tensor: TensorPlan, weights: int = WEIGHTS) -> str:
    """Return the hash of the rows of a tensor that `measure_errors` samples."""
    sampled = _Tensor(plan, tensor, None, weights, CORE)
    digest = xxhash.xxh3_128()
    for runs in sampled.runs().values():
        digest.update(sampled.read(runs).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Better:
    """What makes the outputs of a matrix better than its importance alone, and what judges them."""

    mean: F32 | None
    feedback: Feedback | None
    panels: F32


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
        digest = xxhash.xxh3_128()
        sums = {t.name: _Sums() for t in types}
        for matrix, runs in self.runs().items():
            rows = self.read(runs)
            digest.update(rows.data)
            self._add(matrix, rows, types, sums)
        relative = {name: of_type.relative for name, of_type in sums.items()}
        return TensorErrors(relative, digest.hexdigest())

    def runs(self) -> dict[int, list[Run]]:
        """Return the rows of the sample, by matrix."""
        n_matrices = self._importance.n_matrices if self._importance else 1
        found: dict[int, list[Run]] = {}
        for run in runs_of(self._n_rows, n_matrices, self._tensor.n_per_row, self._weights):
            found.setdefault(run.matrix, []).append(run)
        return found

    def read(self, runs: Iterable[Run]) -> U8:
        """Return the stored bytes of some rows."""
        return read_runs(self._source, runs)

    def _add(
        self, matrix: int, rows: U8, types: Iterable[QuantType], sums: Mapping[str, _Sums]
    ) -> None:
        """Encode a sample of a matrix with each type, and add to its sums."""
        n, stored = self._tensor.n_per_row, self._source.stored
        if stored.name not in FLOATS:
            blocks = rows.reshape(-1, stored.row_size(n))
            rows, stored = decode(blocks, stored, n).reshape(-1).view(np.uint8), ALL["F32"]
        importance = self._importance.of(matrix) if self._importance else None
        share = self._share(matrix)
        usual = None if importance is None else usual_inputs(importance)
        better = self._better(matrix, importance)
        for qtype in types:
            batch = Batch(rows, stored, n, qtype, importance, self._search)
            encoded = self._encode(batch, measure=False)
            its, found = sums[qtype.name], error_sums(rows, stored, n, qtype, encoded.blocks, usual)
            its.lost.append(share * found.difference)
            its.whole.append(share * found.original)
            if better is None or qtype.is_float:
                continue
            mean = better.mean if uses_means(qtype) else None
            final = replace(batch, mean=mean, feedback=better.feedback)
            for blocks, added in (
                (encoded.blocks, its.plain),
                (self._encode(final, measure=False).blocks, its.final),
            ):
                errors = output_errors(rows, stored, n, qtype, blocks, better.panels)
                added.append(share * fsum(errors))

    def _better(self, matrix: int, importance: F32 | None) -> _Better | None:
        """Return what a conversion knows besides the importance; None if text cannot judge it."""
        if self._factors is None or self._importance is None or importance is None:
            return None
        name, feedback = self._tensor.name, None
        if self._setting:
            factor = self._factors.of(name, matrix, self._setting.damping)
            feedback = Feedback(factor, importance, self._setting.sweeps)
        panels = self._factors.held_out(name, matrix, importance)
        return _Better(self._importance.mean(matrix), feedback, panels)

    def _encode(self, batch: Batch, *, measure: bool) -> Encoded:
        try:
            return self._encoder.encode(batch, measure=measure)
        except NotFiniteError as e:
            raise ConvertError(
                f"tensor {self._tensor.name!r}: a weight is not finite (NaN or infinity); the"
                " checkpoint is damaged or not complete"
            ) from e

    def _share(self, matrix: int) -> float:
        """Return the part of all tokens that a matrix is multiplied by."""
        its = self._importance
        if its is None or not its.is_counted:
            return 1.0
        return its.sums(matrix)[1] / sum(its.sums(m)[1] for m in range(its.n_matrices))
