"""The work of a conversion: ranges of rows, in the order in which their blocks lie in the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dynquant.importance.audit import Importance
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.quants.error import NO_ERROR, ErrorSums
from dynquant.tensors import TensorSource, n_rows, row_bytes


@dataclass(frozen=True)
class Done:
    """Rows start..stop of a tensor that an earlier run has written, and what their blocks hash to.

    tensor: its number in the plan; sums: of their errors
    """

    tensor: int
    start: int
    stop: int
    checksum: int
    sums: ErrorSums = NO_ERROR


@dataclass(frozen=True)
class Job:
    """Rows start..stop of one tensor, all of one matrix where its matrices differ in importance.

    number: its place in the order of the files; index: of the tensor in the plan
    done:   what an earlier run wrote there
    """

    number: int
    index: int
    tensor: TensorPlan
    source: TensorSource
    start: int
    stop: int
    importance: Importance | None
    matrix: int
    done: Done | None = None

    @property
    def n_rows(self) -> int:
        """Rows of the job."""
        return self.stop - self.start

    @property
    def row_size(self) -> int:
        """Bytes of an encoded row."""
        return self.tensor.type.row_size(self.tensor.n_per_row)

    @property
    def n_bytes(self) -> int:
        """Bytes of its blocks."""
        return self.n_rows * self.row_size


def jobs(plan: Plan, chunk_bytes: int, done: Mapping[int, Sequence[Done]]) -> Iterator[Job]:
    """Yield the work in the order of the files; what is done comes in its place, as it was done.

    chunk_bytes: stored bytes of a job, at least one row
    done:        by number of the tensor, ranges that do not overlap, in order
    """
    number = 0
    for index, tensor in enumerate(plan.tensors):
        source = plan.sources[tensor.name].source
        importance = plan.importance.get(tensor.name)
        for start, stop, matrix, earlier in _ranges(
            tensor, source, importance, chunk_bytes, done.get(index, ())
        ):
            yield Job(number, index, tensor, source, start, stop, importance, matrix, earlier)
            number += 1


def _ranges(
    tensor: TensorPlan,
    source: TensorSource,
    importance: Importance | None,
    chunk_bytes: int,
    done: Sequence[Done],
) -> Iterator[tuple[int, int, int, Done | None]]:
    """Yield ranges of rows with the matrix that they are of, and what is done of them."""
    rows = n_rows(tensor.shape)
    together = rows if importance is None else rows // importance.n_matrices
    # Blocks that change their type are F32 on the way, which may be twenty times as long.
    is_decoded = not (source.stored.is_float or source.stored == tensor.type)
    row = 4 * tensor.n_per_row if is_decoded else row_bytes(source)
    step = max(1, chunk_bytes // row)
    position = 0
    for range_ in (*done, None):
        gap = rows if range_ is None else range_.start
        while position < gap:
            matrix = position // together
            stop = min(position + step, (matrix + 1) * together, gap)
            yield position, stop, matrix, None
            position = stop
        if range_ is not None:
            yield range_.start, range_.stop, range_.start // together, range_
            position = range_.stop
