"""What an imatrix has of each tensor of a model, and what a conversion does with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from dynquant.arch.base import ModelTensor, TensorName
from dynquant.arrays import F32
from dynquant.importance.audit import Importance, audit, gaps, unused
from dynquant.importance.entry import Entry
from dynquant.importance.equal import DATASET
from dynquant.importance.experts import Policy
from dynquant.importance.imatrix import Imatrix
from dynquant.name_lists import grouped

FEW_TOKENS = 100
"""An expert with fewer tokens is reported. The mean of the squares of 100 normal numbers has a
standard deviation of 14 percent (the root of 2/n), and tokens of one text vary more together."""

OUTLIER = 100
"""A channel is an outlier if its mean square is more than this times the median of its matrix."""

_ROUNDING = 1e-3
"""Tolerance for a squared mean above the mean square: sums are stored in F32."""


@dataclass(frozen=True)
class TensorAudit:
    """What an imatrix has of one tensor, and what a conversion does with it.

    Figures of channels are of all matrices with data, together.

    role:       the role of the tensor that the data were collected for, if it is another one
    counts:     smallest, median and largest number of tokens of a matrix; None if the file does
                not state it for each
    without:    matrices without data
    few:        matrices with data of fewer than FEW_TOKENS tokens
    constant:   matrices of which all channels are equal
    zero:       channels that are zero
    outliers:   channels above OUTLIER times the median of their matrix
    largest:    largest share of one channel in the sum of its matrix
    signed:     the file has sums with signs, too
    impossible: channels whose mean is larger than their mean square allows
    mixed:      largest share of what experts have in common in the importance of one with data
    same_inputs: experts read the same inputs, so that they have the mean of their layer in common
    has_mean:   experts without data have the mean of their layer
    """

    name: str
    n_per_row: int
    n_matrices: int
    role: str = ""
    counts: tuple[int, int, int] | None = None
    without: int = 0
    few: int = 0
    constant: int = 0
    zero: int = 0
    outliers: int = 0
    largest: float = 0.0
    signed: bool = False
    impossible: int = 0
    mixed: float = 0.0
    same_inputs: bool = True
    has_mean: bool = False

    @property
    def parts(self) -> TensorName:
        """The name, parsed into role and layer."""
        return TensorName.parse(self.name)

    @property
    def is_covered(self) -> bool:
        """Whether the file has data of any of its matrices."""
        return self.without < self.n_matrices

    @property
    def short_use(self) -> str:
        """What a conversion does with the data, in a word or two."""
        if not self.is_covered:
            return "none"
        return ("mixed" if self.mixed else "as it is") + (f", of {self.role}" if self.role else "")

    @property
    def use(self) -> str:
        """What a conversion does with the data, in words."""
        if not self.is_covered:
            return "none: weighted equally"
        common = "the layer's mean" if self.same_inputs else "equal weights"
        parts = [f"mixed with {common}" if self.mixed else "as it is"]
        if self.role:
            parts.append(f"of {self.role}")
        if self.without:
            instead = "have the layer's mean" if self.has_mean else "are weighted equally"
            parts.append(f"experts without data {instead}")
        return "; ".join(parts)


@dataclass(frozen=True)
class ImatrixAudit:
    """An imatrix and a model.

    file:        name of the file
    is_older:    it has the older format, without counts of tokens
    chunk_count: number of chunks of calibration text, and tokens of each; None if not stated
    made:        what the program that made it recorded, by key
    policy:      what experts with few tokens have, and those without any
    tensors:     the matrices that recipes quantize, in the order of the model
    unused:      names in the file that are not used
    problems:    what is wrong or missing, the worst first
    """

    file: str
    sha256: str
    is_older: bool
    datasets: tuple[str, ...]
    chunk_count: int | None
    chunk_size: int | None
    made: Mapping[str, str]
    policy: Policy
    tensors: tuple[TensorAudit, ...]
    unused: tuple[str, ...]
    problems: tuple[str, ...]


def audit_of(
    imatrix: Imatrix, tensors: Sequence[ModelTensor], wanted: Sequence[str], policy: Policy
) -> ImatrixAudit:
    """Return what an imatrix has of the tensors of a model.

    tensors: all of the model
    wanted:  names of the tensors that are listed
    policy:  what experts with few tokens have, and those without any

    Raises ImportanceError for the file of another model.
    """
    importance, warnings = audit(imatrix, tensors, policy)
    known = {n: importance[n] for n in wanted if n in importance}
    by_name = {t.name: t for t in tensors}
    found = tuple(
        _figures(n, known[n], imatrix) if n in known else _without(by_name[n], imatrix)
        for n in wanted
    )
    if DATASET in imatrix.datasets:
        problems = chain([DATASET], warnings, gaps(imatrix, wanted, known))
    else:
        problems = chain(_damages(found), warnings, gaps(imatrix, wanted, known), _doubts(found))
    return ImatrixAudit(
        imatrix.path.name,
        imatrix.sha256,
        imatrix.is_older,
        imatrix.datasets,
        imatrix.chunk_count,
        imatrix.chunk_size,
        imatrix.made,
        policy,
        found,
        tuple(unused(imatrix, tensors)),
        tuple(p.removeprefix(f"{imatrix.path}: ") for p in problems),
    )


def _without(tensor: ModelTensor, imatrix: Imatrix) -> TensorAudit:
    n = int(np.prod(tensor.shape[:-2], dtype=np.int64))
    entry = imatrix.entries.get(tensor.name)
    counts = _counts(entry, n, imatrix) if entry else None
    return TensorAudit(tensor.name, tensor.n_per_row, n, counts=counts, without=n)


def _figures(name: str, importance: Importance, imatrix: Imatrix) -> TensorAudit:
    """Return the figures of a tensor with data."""
    entry, shrink = importance.entry, importance.policy.shrink
    rows = range(1 if importance.is_shared else importance.n_matrices)
    channels = [_Channels.of(importance, m) for m in rows if m not in importance.without]
    counts = _counts(entry, importance.n_matrices, imatrix)
    seen = [c.count for c in channels]
    return TensorAudit(
        name,
        importance.n_per_row,
        importance.n_matrices,
        importance.role,
        counts,
        len(importance.without),
        sum(n < FEW_TOKENS for n in seen) if counts else 0,
        sum(c.is_constant for c in channels),
        sum(c.zero for c in channels),
        sum(c.outliers for c in channels),
        max(c.largest for c in channels),
        entry.linear is not None,
        sum(c.impossible for c in channels),
        shrink / (shrink + min(seen)) if importance.common and shrink else 0.0,
        not importance.is_of_neurons,
        importance.has_mean,
    )


def _counts(entry: Entry, n_matrices: int, imatrix: Imatrix) -> tuple[int, int, int] | None:
    """Return the smallest, median and largest count; experts need one each."""
    are_experts = n_matrices > 1 and "_exps." in entry.name
    if imatrix.is_older or (are_experts and entry.n_rows == 1):
        return None
    ordered = sorted(entry.counts)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


@dataclass(frozen=True)
class _Channels:
    """Figures of the channels of one matrix; see `TensorAudit`."""

    count: int
    is_constant: bool
    zero: int
    outliers: int
    largest: float
    impossible: int

    @classmethod
    def of(cls, importance: Importance, matrix: int) -> _Channels:
        sums, count = importance.sums(matrix)
        median = float(np.median(sums))
        return cls(
            count,
            len(sums) > 1 and bool((sums == sums[0]).all()),
            int((sums == 0).sum()),
            int((sums > OUTLIER * median).sum()) if median else 0,
            float(sums.max() / sums.sum(dtype=np.float64)),
            _n_impossible(sums, importance.linear_sums(matrix), count),
        )


def _n_impossible(sums: F32, linear: F32 | None, count: int) -> int:
    """Return how many channels have a mean whose square is larger than the mean square."""
    if linear is None:
        return 0
    allowed = count * sums.astype(np.float64) * (1 + _ROUNDING)
    return int((~(np.square(linear.astype(np.float64)) <= allowed)).sum())


def _damages(tensors: Sequence[TensorAudit]) -> Iterator[str]:
    if bad := [t for t in tensors if t.impossible]:
        yield (
            f"damaged: {sum(t.impossible for t in bad)} channels of {_names(bad)} have a mean whose"
            " square is larger than their mean square; compute the imatrix again"
        )
    if bad := [t for t in tensors if t.constant]:
        yield (
            f"all channels are equal in {sum(t.constant for t in bad)} of"
            f" {sum(t.n_matrices for t in bad)} matrices of {_names(bad)}; they were probably not"
            " measured (the older format has ones for experts without tokens)"
        )


def _doubts(tensors: Sequence[TensorAudit]) -> Iterator[str]:
    if few := [t for t in tensors if t.few]:
        yield (
            f"fewer than {FEW_TOKENS} tokens for {sum(t.few for t in few)} of"
            f" {sum(t.n_matrices for t in few)} matrices in {_names(few)}; make an imatrix with"
            " more text"
        )
    experts = [t for t in tensors if t.is_covered and t.n_matrices > 1 and "_exps." in t.name]
    if uncounted := [t for t in experts if t.counts is None]:
        yield (
            f"no counts of the tokens of each expert in {_names(uncounted)}; experts with few"
            " tokens cannot be recognized, and their importance is used as it is"
        )


def _names(tensors: Sequence[TensorAudit]) -> str:
    return ", ".join(grouped(t.name for t in tensors))
