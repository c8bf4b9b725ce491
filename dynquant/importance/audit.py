"""Whether an imatrix is of this model, and what it says about each of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.arrays import F32
from dynquant.errors import ImportanceError
from dynquant.importance.entry import Entry
from dynquant.importance.imatrix import Imatrix
from dynquant.name_lists import grouped

_SELDOM_COUNTED = ("token_embd.weight", "output.weight")
"""llama-imatrix never counts for the embedding, and for the output only with --process-output."""


@dataclass(frozen=True)
class Importance:
    """The importance of one tensor's input channels, for each of its matrices.

    n_matrices: 1, or the product of the dimensions before the last two: experts
    without:    matrices about which the file says nothing: no count, or nothing but zeros
    """

    entry: Entry
    n_matrices: int
    n_per_row: int
    without: frozenset[int] = frozenset()

    @property
    def is_shared(self) -> bool:
        """Whether the file has one row for all matrices."""
        return self.entry.n_values == self.n_per_row

    @property
    def coverage(self) -> str:
        """What a plan says of it: "yes", or "partial: 125 of 128 experts"."""
        if not self.without:
            return "yes"
        return f"partial: {self.n_matrices - len(self.without)} of {self.n_matrices} experts"

    def of(self, matrix: int) -> F32 | None:
        """Return float32 [n_per_row], the mean squares; None where nothing is known of a matrix.

        Raises ImportanceError if the file is not what it was when it was read.
        """
        if matrix in self.without:
            return None
        sums, count = self._sums(matrix)
        if not (np.isfinite(sums).all() and (sums >= 0).all()):
            raise ImportanceError(f"{self.entry.file.path}: changed since it was read")
        return sums / np.float32(count)

    def is_silent(self, matrix: int) -> bool:
        """Whether the file says nothing of a matrix that would set one channel above another."""
        sums, count = self._sums(matrix)
        return not count or not sums.any()

    def _sums(self, matrix: int) -> tuple[F32, int]:
        start = 0 if self.is_shared else matrix * self.n_per_row
        sums = self.entry.sums(start, start + self.n_per_row)
        return sums, self.entry.counts[start // self.entry.n_per_row]


def audit(
    imatrix: Imatrix, tensors: Sequence[ModelTensor]
) -> tuple[dict[str, Importance], tuple[str, ...]]:
    """Return the importance of each tensor that the file has data for, and what to warn about.

    Names must be equal; an entry has a value for each channel of a row, once for all matrices of
    the tensor or once for each. Raises ImportanceError for another model's file, with the names
    and sizes that disagree.
    """
    path = imatrix.path
    by_name = {t.name: t for t in tensors}
    extra = grouped(sorted(imatrix.entries.keys() - by_name.keys()))
    known = [(by_name[name], e) for name, e in imatrix.entries.items() if name in by_name]
    if not known:
        raise ImportanceError(
            f"{path}: is another model's file: this model has none of its tensors"
            f" ({', '.join(extra[:3])}{', …' if len(extra) > 3 else ''})"
        )
    warnings = [f"{path}: not in the model, not used: {', '.join(extra)}"] if extra else []
    misfits = [(t, e) for t, e in known if not _fits(t, e)]
    # No matrix product reads the embedding; llama.cpp passes over a wrong size of it, too.
    warnings += [f"{path}: {m}; not used" for m in _misfits(p for p in misfits if _is_embedding(p))]
    ImportanceError.raise_any(
        f"{path}: is another model's file: {m}"
        for m in _misfits(p for p in misfits if not _is_embedding(p))
    )
    found = {t.name: _audited(t, e) for t, e in known if _fits(t, e)}
    return {n: i for n, i in found.items() if len(i.without) < i.n_matrices}, tuple(warnings)


def missing(wanted: Iterable[str], importance: Mapping[str, Importance]) -> list[str]:
    """Return the wanted tensors that lack importance, but for those that seldom have any."""
    return [n for n in wanted if n not in importance and n not in _SELDOM_COUNTED]


def gaps(
    imatrix: Imatrix, wanted: Iterable[str], importance: Mapping[str, Importance]
) -> Iterator[str]:
    """Say which of the wanted tensors lack importance that a calibration run would have given."""
    if lacking := missing(wanted, importance):
        yield (
            f"{imatrix.path}: no importance for {', '.join(grouped(lacking))}; all their channels"
            " weigh alike"
        )
    partial = {n: i for n, i in importance.items() if i.without}
    if partial:
        most = max(partial, key=lambda n: len(partial[n].without))
        among = f", {len(partial[most].without)} of them in {most}" if len(partial) > 1 else ""
        yield (
            f"{imatrix.path}: no importance for {sum(len(i.without) for i in partial.values())} of"
            f" {sum(i.n_matrices for i in partial.values())} experts in"
            f" {', '.join(grouped(partial))}{among}; all their channels weigh alike"
        )


def _audited(tensor: ModelTensor, entry: Entry) -> Importance:
    made = Importance(entry, _n_matrices(tensor), tensor.n_per_row)
    if made.is_shared:
        silent = range(made.n_matrices) if made.is_silent(0) else ()
    else:
        silent = (m for m in range(made.n_matrices) if made.is_silent(m))
    return replace(made, without=frozenset(silent))


def _n_matrices(tensor: ModelTensor) -> int:
    return prod(tensor.shape[:-2])


def _is_embedding(pair: tuple[ModelTensor, Entry]) -> bool:
    return pair[0].name == "token_embd.weight"


def _fits(tensor: ModelTensor, entry: Entry) -> bool:
    n_matrices = _n_matrices(tensor)
    if entry.n_rows > 1:
        return (entry.n_rows, entry.n_per_row) == (n_matrices, tensor.n_per_row)
    return entry.n_values in (tensor.n_per_row, n_matrices * tensor.n_per_row)


def _misfits(pairs: Iterable[tuple[ModelTensor, Entry]]) -> Iterator[str]:
    """Say what tensors have instead of a value for each channel, those with the same in a line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for tensor, entry in pairs:
        n_matrices = _n_matrices(tensor)
        has = f"{entry.n_rows} times " if entry.n_rows > 1 else ""
        wanted = f"{n_matrices} times " if n_matrices > 1 else ""
        key = f"{has}{entry.n_per_row}", f"{wanted}{tensor.n_per_row}"
        groups.setdefault(key, []).append(tensor.name)
    for (has, wanted), names in groups.items():
        yield f"{has} values for the {wanted} input channels of {', '.join(grouped(names))}"
