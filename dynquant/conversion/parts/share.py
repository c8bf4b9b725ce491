"""The rows of each part: contiguous in the output, and of about the same cost."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from dynquant.conversion.estimate import EXPECTED, PER_CHANNEL
from dynquant.conversion.scope import Scope
from dynquant.conversion.work import TensorWork, Work
from dynquant.errors import ConvertError
from dynquant.quants.encoder import is_copied
from dynquant.quants.feedback import ROWS as FEEDBACK_ROWS
from dynquant.tensors import parts_of
from dynquant.transforms import Transposed

_SECONDS_PER_BYTE = 1e-9
"""To read or write a byte, assumed: a disk or network of 1 GB/s for each part."""

_PRODUCTS = 1e10
"""Multiply-adds a second of one thread, assumed: with error feedback they decide how long a weight
takes. A wrong number makes parts unequal, and changes no byte."""

MOST = 4096
"""Limit on the number of parts."""

_TEXT = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")


@dataclass(frozen=True, order=True)
class Part:
    """One of `count` parts of a conversion; number: from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `3/16`; raise ValueError for anything else."""
        found = _TEXT.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= int(found[2]) <= MOST:
            raise ValueError(f"{text!r} is not a part such as 3/16: numbers from 1 to {MOST}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def scope_of(work: Work, part: Part) -> Scope:
    """Return the rows of a part.

    Every row is in exactly one part. Rows that are encoded or read together are not divided.

    Raises ConvertError if there are fewer groups of rows than parts.
    """
    bounds = [*_bounds(work, part.count)]
    (first, last) = bounds[part.number - 1], bounds[part.number]
    rows: dict[int, range] = {}
    for tensor in work.tensors[first[0] : last[0] + 1]:
        start = first[1] if tensor.number == first[0] else 0
        stop = last[1] if tensor.number == last[0] else tensor.n_rows
        if start < stop:
            rows[tensor.number] = range(start, stop)
    if not rows:
        raise ConvertError(
            f"part {part}: has no rows, because the model is too small for {part.count} parts; use"
            " fewer"
        )
    return Scope(work, rows)


def owned_files(scope: Scope) -> list[int]:
    """Return the numbers of the source files whose first reader is in a scope.

    Each file belongs to one part, which hashes it.
    """
    first: dict[int, int] = {}
    for tensor in scope.work.tensors:
        for file in tensor.source_files:
            first.setdefault(file, tensor.number)
    return [f for f, number in first.items() if 0 in scope.rows.get(number, range(0))]


def seconds_of(tensor: TensorWork) -> float:
    """Return about how long a row takes one thread, in seconds."""
    n_bytes = tensor.stored_row_size + tensor.row_size
    if is_copied(tensor.source.stored, tensor.type):
        return n_bytes * _SECONDS_PER_BYTE
    each = EXPECTED[tensor.type.name]
    if tensor.fed is not None:
        each += PER_CHANNEL * tensor.n_per_row / _PRODUCTS
    return n_bytes * _SECONDS_PER_BYTE + each * tensor.n_per_row


def _bounds(work: Work, count: int) -> Iterator[tuple[int, int]]:
    """Yield where each part begins, and the end: a tensor's number, and a row of it."""
    costs = [seconds_of(t) * t.n_rows for t in work.tensors]
    ends = [*accumulate(costs)]
    for number in range(count):
        goal = ends[-1] * number / count
        index = min(bisect_left(ends, goal), len(ends) - 1)
        tensor = work.tensors[index]
        done = goal - (ends[index] - costs[index])
        row = round(done / seconds_of(tensor)) if costs[index] else 0
        yield index, _together(tensor, row)
    yield len(work.tensors) - 1, work.tensors[-1].n_rows


def _together(tensor: TensorWork, row: int) -> int:
    """Return the next row at which a tensor may be divided."""
    if any(True for _ in parts_of(tensor.source, Transposed)):
        matrix = tensor.shape[-2] if len(tensor.shape) > 1 else 1
        return min(-(-row // matrix) * matrix, tensor.n_rows)
    if tensor.fed is None:
        return min(row, tensor.n_rows)
    begin = row // tensor.rows_of_matrix * tensor.rows_of_matrix
    within = -(-(row - begin) // FEEDBACK_ROWS) * FEEDBACK_ROWS
    return min(begin + min(within, tensor.rows_of_matrix), tensor.n_rows)
