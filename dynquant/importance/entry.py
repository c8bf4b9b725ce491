"""The data of one tensor in an imatrix file of either format."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.errors import CheckpointError, ImportanceError
from dynquant.tensors import ShardFile


@dataclass(frozen=True)
class Entry:
    """The data of one tensor; the sums stay in the file, because those of R1 are a gigabyte.

    offset:    bytes from the start of the file to n_rows * n_per_row float32
    n_per_row: as in the file; the older format has all experts in one row
    counts:    divisor of each row that gives its means; 0 if there are no data
    linear:    bytes from the start of the file to the sums of the inputs themselves, with their
               signs, as many; None if the file has none
    """

    name: str
    file: ShardFile = field(repr=False)
    offset: int
    n_per_row: int
    counts: tuple[int, ...]
    linear: int | None = None

    @property
    def n_rows(self) -> int:
        """Rows of sums."""
        return len(self.counts)

    @property
    def n_values(self) -> int:
        """Sums in all rows."""
        return self.n_rows * self.n_per_row

    def sums(self, start: int, stop: int) -> F32:
        """Return the sums start..stop, counted over all rows, float32 [stop - start].

        Raises ImportanceError if the file became shorter since it was opened.
        """
        return self._read(self.offset, start, stop)

    def linear_sums(self, start: int, stop: int) -> F32 | None:
        """Return the sums of the inputs themselves, float32 [stop - start]; None if there are none.

        Raises ImportanceError if the file became shorter since it was opened.
        """
        return None if self.linear is None else self._read(self.linear, start, stop)

    def _read(self, offset: int, start: int, stop: int) -> F32:
        found: U8 = np.empty(4 * (stop - start), np.uint8)
        try:
            self.file.read(offset + 4 * start, found)
        except CheckpointError as e:
            raise ImportanceError(*e.messages) from e
        return found.view("<f4").astype(np.float32, copy=False)

    def means(self) -> F32:
        """Return the mean squares, float32 [n_rows, n_per_row]; ones for rows without data.

        Raises ImportanceError if the file became shorter since it was opened.
        """
        means = self.sums(0, self.n_values).reshape(self.n_rows, self.n_per_row)
        for row, count in zip(means, self.counts, strict=True):
            row[:] = row / np.float32(count) if count else 1
        return means


Found = tuple[list[Entry], tuple[str, ...], int | None]
"""The result of a reader: entries, names of datasets, and the number of chunks if it is known."""
