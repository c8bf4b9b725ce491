"""Checks an imatrix against a model and assigns importance to the model's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from math import prod

import numpy as np

from dynquant.arch.base import ModelTensor, TensorName
from dynquant.arrays import F32
from dynquant.errors import ImportanceError
from dynquant.importance.entry import Entry
from dynquant.importance.experts import DEFAULT, Common, Policy
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.means import without_chance
from dynquant.name_lists import grouped

_SELDOM_COUNTED = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
"""llama-imatrix has no data for embeddings, and for the output only with --process-output."""


_SAME_INPUTS = (
    ("ffn_gate_up", "ffn_up", "ffn_gate"),
    ("ffn_gate_up_exps", "ffn_up_exps", "ffn_gate_exps"),
    ("ffn_up_shexp", "ffn_gate_shexp"),
    ("ffn_up_chexps", "ffn_gate_chexps"),
    ("attn_qkv", "attn_q", "attn_k", "attn_v"),
)
"""Roles whose matrices multiply the same activations in every graph of llama.cpp, so that their
importance is the same. A file has other names than the model if one of the two has fused matrices
(`--fuse-gate-up-exps` of llama.cpp's converter)."""


@dataclass(frozen=True)
class Importance:
    """The importance of one tensor's input channels, for each of its matrices.

    n_matrices: 1, or the product of the dimensions before the last two: experts
    without:    matrices without data in the file: the count or all sums are zero
    role:       the role of the tensor that the data were collected for, if it is another one with
                the same inputs
    policy:     what experts with few tokens have, and those without any
    common:     what the experts have in common; None if the file does not count their tokens
    """

    entry: Entry
    n_matrices: int
    n_per_row: int
    without: frozenset[int] = frozenset()
    role: str = ""
    policy: Policy = DEFAULT
    common: Common | None = field(default=None, repr=False, compare=False)

    @property
    def is_shared(self) -> bool:
        """Whether the file has one row for all matrices."""
        return self.entry.n_values == self.n_per_row

    @property
    def coverage(self) -> str:
        """The text in a plan: "yes", or "partial: 125 of 128 experts"; ", of ROLE" if borrowed."""
        of = f", of {self.role}" if self.role else ""
        if not self.without:
            return "yes" + of
        return f"partial: {self.n_matrices - len(self.without)} of {self.n_matrices} experts{of}"

    def of(self, matrix: int) -> F32 | None:
        """Return the importance of a matrix, float32 [n_per_row]; None for equal weights.

        It is the mean squares of its inputs, of experts as experts.py describes.

        Raises ImportanceError if the file changed since it was read.
        """
        if matrix in self.without:
            return self.common.importance if self.common and self.has_mean else None
        sums, count = self.sums(matrix)
        if not (np.isfinite(sums).all() and (sums >= 0).all() and sums.any()):
            raise ImportanceError(f"{self.entry.file.path}: changed since it was read; start again")
        if self.common and self.policy.shrink:
            return self.common.mixed(sums, count, self.policy.shrink)
        return sums / np.float32(count)

    def mean(self, matrix: int) -> F32 | None:
        """Return the means of a matrix's inputs, float32 [n_per_row]; None if they are unknown.

        What chance gives the means of few tokens is taken away (means.py).

        Raises ImportanceError if the file changed since it was read.
        """
        signed = None if matrix in self.without else self.linear_sums(matrix)
        if signed is None:
            return None
        sums, count = self.sums(matrix)
        return without_chance(signed, sums, count)

    @property
    def is_counted(self) -> bool:
        """Whether the matrices are experts, and the file counts the tokens of each."""
        role = TensorName.parse(self.entry.name).role
        return self.entry.n_rows == self.n_matrices > 1 and role.endswith("exps")

    @property
    def is_of_neurons(self) -> bool:
        """Whether the channels are the neurons of an expert: those of `ffn_down`."""
        return TensorName.parse(self.entry.name).role.startswith("ffn_down")

    @property
    def has_mean(self) -> bool:
        """Whether experts without data have the mean of their layer."""
        return (
            self.common is not None and self.policy.unseen != "uniform" and not self.is_of_neurons
        )

    def is_empty(self, matrix: int) -> bool:
        """Whether the file has no data for a matrix: the count or all sums are zero."""
        sums, count = self.sums(matrix)
        return not count or not sums.any()

    def sums(self, matrix: int) -> tuple[F32, int]:
        """Return the sums of squares of a matrix, float32 [n_per_row], and their count."""
        start = self._start(matrix)
        sums = self.entry.sums(start, start + self.n_per_row)
        return sums, self.entry.counts[start // self.entry.n_per_row]

    def linear_sums(self, matrix: int) -> F32 | None:
        """Return the sums with signs of a matrix, float32 [n_per_row]; None if there are none."""
        start = self._start(matrix)
        return self.entry.linear_sums(start, start + self.n_per_row)

    def _start(self, matrix: int) -> int:
        return 0 if self.is_shared else matrix * self.n_per_row


def audit(
    imatrix: Imatrix, tensors: Sequence[ModelTensor], policy: Policy = DEFAULT
) -> tuple[dict[str, Importance], tuple[str, ...]]:
    """Return the importance of each tensor with data in the file, and warnings.

    Names must be equal. A tensor without data has those of a tensor with the same inputs. An
    entry has a value for each channel of a row, either once for all matrices of the tensor or for
    each matrix. Raises ImportanceError for the file of another model, with the names and sizes that
    differ.

    policy: what experts with few tokens have, and those without any
    """
    path = imatrix.path
    known = _pairs(imatrix, tensors)
    extra = grouped(unused(imatrix, tensors))
    if not known:
        raise ImportanceError(
            f"{path}: is the imatrix of another model: this model has none of its tensors"
            f" ({', '.join(extra[:3])}{', …' if len(extra) > 3 else ''})"
        )
    warnings = [f"{path}: ignored, not in the model: {', '.join(extra)}"] if extra else []
    misfits = [(t, e) for t, e in known if not _fits(t, e)]
    # No matrix product reads the embedding; llama.cpp ignores a wrong size of it, too.
    warnings += [f"{path}: ignored: {m}" for m in _misfits(p for p in misfits if _is_embedding(p))]
    ImportanceError.raise_any(
        f"{path}: is the imatrix of another model: {m}"
        for m in _misfits(p for p in misfits if not _is_embedding(p))
    )
    found = {t.name: _with_data(t, e, imatrix, policy) for t, e in known if _fits(t, e)}
    return {name: i for name, i in found.items() if i is not None}, tuple(warnings)


def unused(imatrix: Imatrix, tensors: Sequence[ModelTensor]) -> list[str]:
    """Return the names in a file that no tensor of the model has data of."""
    used = {entry.name for _, entry in _pairs(imatrix, tensors)}
    return sorted(imatrix.entries.keys() - used)


def _pairs(imatrix: Imatrix, tensors: Sequence[ModelTensor]) -> list[tuple[ModelTensor, Entry]]:
    """Return tensors with their entries, or with entries of the same inputs."""
    by_name = {t.name: t for t in tensors}
    known = [(by_name[name], e) for name, e in imatrix.entries.items() if name in by_name]
    absent = (t for t in tensors if t.name not in imatrix.entries)
    return known + [(t, e) for t in absent for e in islice(_of_same_inputs(t, imatrix), 1)]


def missing(wanted: Iterable[str], importance: Mapping[str, Importance]) -> list[str]:
    """Return the wanted tensors without importance, except those that seldom have it."""
    return [n for n in wanted if n not in importance and n not in _SELDOM_COUNTED]


def gaps(
    imatrix: Imatrix, wanted: Iterable[str], importance: Mapping[str, Importance]
) -> Iterator[str]:
    """Yield warnings for wanted tensors that the calibration run did not cover."""
    if names := missing(wanted, importance):
        yield (
            f"{imatrix.path}: no importance for {', '.join(grouped(names))}; their channels are"
            " weighted equally"
        )
    for has_mean, instead in (
        (True, "they have the mean of their layer"),
        (False, "their channels are weighted equally"),
    ):
        partial = {n: i for n, i in importance.items() if i.without and i.has_mean == has_mean}
        if not partial:
            continue
        most = max(partial, key=lambda n: len(partial[n].without))
        among = f", {len(partial[most].without)} of them in {most}" if len(partial) > 1 else ""
        yield (
            f"{imatrix.path}: no importance for {sum(len(i.without) for i in partial.values())} of"
            f" {sum(i.n_matrices for i in partial.values())} experts in"
            f" {', '.join(grouped(partial))}{among}; {instead}"
        )


def _with_data(
    tensor: ModelTensor, entry: Entry, imatrix: Imatrix, policy: Policy
) -> Importance | None:
    """Return the importance from an entry, or from one with the same inputs if that has no data."""
    for each in chain([entry], _of_same_inputs(tensor, imatrix)):
        found = _audited(tensor, each, policy)
        if len(found.without) < found.n_matrices:
            return found
    return None


def _audited(tensor: ModelTensor, entry: Entry, policy: Policy) -> Importance:
    role = TensorName.parse(entry.name).role if entry.name != tensor.name else ""
    made = Importance(entry, _n_matrices(tensor), tensor.n_per_row, role=role, policy=policy)
    if made.is_shared:
        empty = range(made.n_matrices) if made.is_empty(0) else ()
    else:
        empty = (m for m in range(made.n_matrices) if made.is_empty(m))
    made = replace(made, without=frozenset(empty))
    if not made.is_counted:
        return made
    seen = (made.sums(m) for m in range(made.n_matrices) if m not in made.without)
    same_inputs = not made.is_of_neurons
    return replace(made, common=Common.of(seen, policy.shrink, same_inputs=same_inputs))


def with_same_inputs(tensor: ModelTensor) -> Iterator[str]:
    """Yield the names that other tensors with the same inputs have, if the model has them."""
    role = tensor.parts.role
    for roles in _SAME_INPUTS if tensor.name.endswith(f".{role}.weight") else ():
        for other in roles if role in roles else ():
            if other != role:
                yield tensor.name.removesuffix(f"{role}.weight") + f"{other}.weight"


def _of_same_inputs(tensor: ModelTensor, imatrix: Imatrix) -> Iterator[Entry]:
    """Yield the entries of other tensors with the same inputs, if their sizes agree."""
    for name in with_same_inputs(tensor):
        entry = imatrix.entries.get(name)
        if entry is not None and _fits(tensor, entry):
            yield entry


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
    """Yield a message for each wrong number of values, with the names of its tensors."""
    groups: dict[tuple[str, str], list[str]] = {}
    for tensor, entry in pairs:
        n_matrices = _n_matrices(tensor)
        has = f"{entry.n_rows} times " if entry.n_rows > 1 else ""
        wanted = f"{n_matrices} times " if n_matrices > 1 else ""
        key = f"{has}{entry.n_per_row}", f"{wanted}{tensor.n_per_row}"
        groups.setdefault(key, []).append(tensor.name)
    for (has, wanted), names in groups.items():
        yield f"{has} values for the {wanted} input channels of {', '.join(grouped(names))}"
