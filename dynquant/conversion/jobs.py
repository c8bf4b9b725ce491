"""Jobs: ranges of rows to encode, in the order in which their blocks lie in the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dynquant.conversion.scope import Scope
from dynquant.conversion.work import TensorWork
from dynquant.quants.error import NO_ERROR, ErrorSums
from dynquant.quants.feedback import ROWS as FEEDBACK_ROWS


@dataclass(frozen=True)
class Done:
    """Rows start..stop of a tensor that an earlier run wrote.

    tensor:   its number in the plan
    checksum: XXH3 of the blocks
    sums:     of their errors
    """

    tensor: int
    start: int
    stop: int
    checksum: int
    sums: ErrorSums = NO_ERROR


@dataclass(frozen=True, eq=False)
class Job:
    """Rows start..stop of one tensor; rows of one matrix if its matrices differ in importance.

    number: its place in the order of the files
    done:   the same rows as an earlier run wrote them, if it did
    """

    number: int
    tensor: TensorWork
    start: int
    stop: int
    matrix: int
    done: Done | None = None

    @property
    def n_rows(self) -> int:
        """Rows of the job."""
        return self.stop - self.start

    @property
    def n_bytes(self) -> int:
        """Bytes of its blocks."""
        return self.n_rows * self.tensor.row_size

    @property
    def n_weights(self) -> int:
        """Weights of its rows."""
        return self.n_rows * self.tensor.n_per_row

    @property
    def position(self) -> int:
        """Position of its first byte in the output file."""
        return self.tensor.position + self.start * self.tensor.row_size


@dataclass(frozen=True)
class Cut:
    """Where a tensor may be cut into jobs.

    row_bytes: of a row as the encoder works on it
    of_matrix: rows of a matrix; no job spans two
    rows:      jobs are multiples of so many rows, but for the last ones of matrices
    """

    row_bytes: int
    of_matrix: int
    rows: int = 1

    @classmethod
    def of(cls, *tensors: TensorWork) -> Cut:
        """Return the cut that suits several outputs of one tensor."""
        return cls(
            max(t.decoded_row_size for t in tensors),
            min(t.rows_of_matrix for t in tensors),
            FEEDBACK_ROWS if any(t.fed is not None for t in tensors) else 1,
        )


def jobs(
    scope: Scope,
    chunk_bytes: int,
    done: Mapping[int, Sequence[Done]],
    cuts: Mapping[int, Cut] = MappingProxyType({}),
) -> Iterator[Job]:
    """Yield jobs that cover every row of a scope once, in the order of the files; see `jobs_of`."""
    return jobs_of(scope.tensors, chunk_bytes, done, cuts)


def jobs_of(
    pieces: Iterable[tuple[TensorWork, range]],
    chunk_bytes: int,
    done: Mapping[int, Sequence[Done]],
    cuts: Mapping[int, Cut] = MappingProxyType({}),
) -> Iterator[Job]:
    """Yield jobs that cover ranges of rows, in their order.

    chunk_bytes: bytes of a job's rows as the encoder works on them; at least one row is taken, and
                 with error feedback a multiple of those that are encoded together
    done:        by number of the tensor, ranges in order that do not overlap; each is a job if it
                 is within one of the ranges
    cuts:        by number of the tensor, cuts that are finer than its own
    """
    number = 0
    for tensor, rows in pieces:
        cut = cuts.get(tensor.number) or Cut.of(tensor)
        for start, stop, earlier in _ranges(cut, rows, chunk_bytes, done.get(tensor.number, ())):
            yield Job(number, tensor, start, stop, start // tensor.rows_of_matrix, earlier)
            number += 1


def _ranges(
    cut: Cut, rows: range, chunk_bytes: int, done: Sequence[Done]
) -> Iterator[tuple[int, int, Done | None]]:
    """Yield ranges of a tensor's rows, with the earlier run's record of those that are done."""
    together = cut.of_matrix
    step = -(-max(1, chunk_bytes // cut.row_bytes) // cut.rows) * cut.rows
    position = rows.start
    within = (d for d in done if rows.start <= d.start and d.stop <= rows.stop)
    for range_ in (*within, None):
        gap = rows.stop if range_ is None else range_.start
        while position < gap:
            stop = min(position + step, (position // together + 1) * together, gap)
            yield position, stop, None
            position = stop
        if range_ is not None:
            yield range_.start, range_.stop, range_
            position = range_.stop
