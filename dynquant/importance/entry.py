"""What an imatrix file holds of one tensor, whichever its format."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.errors import CheckpointError, ImportanceError
from dynquant.tensors import ShardFile


@dataclass(frozen=True)
class Entry:
    """What an imatrix holds of one tensor; the sums stay in the file, R1's are a gigabyte.

    offset:    bytes from the start of the file to n_rows * n_per_row float32
    n_per_row: as the file has it; the older format has all experts in one row
    counts:    what each row is divided by to get means; 0 where there are no data
    """

    name: str
    file: ShardFile = field(repr=False)
    offset: int
    n_per_row: int
    counts: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Rows of sums."""
        return len(self.counts)

    @property
    def n_values(self) -> int:
        """Sums in all rows."""
        return self.n_rows * self.n_per_row

    def sums(self, start: int, stop: int) -> F32:
        """Return float32 [stop - start], the sums of a range that counts over all rows.

        Raises ImportanceError if the file became shorter since it was opened.
        """
        found: U8 = np.empty(4 * (stop - start), np.uint8)
        try:
            self.file.read(self.offset + 4 * start, found)
        except CheckpointError as e:
            raise ImportanceError(*e.messages) from e
        return found.view("<f4").astype(np.float32, copy=False)

    def means(self) -> F32:
        """Return float32 [n_rows, n_per_row], the mean squares; all ones where there are no data.

        Raises ImportanceError if the file became shorter since it was opened.
        """
        means = self.sums(0, self.n_values).reshape(self.n_rows, self.n_per_row)
        for row, count in zip(means, self.counts, strict=True):
            row[:] = row / np.float32(count) if count else 1
        return means


Found = tuple[list[Entry], tuple[str, ...], int | None]
"""What a reader finds: entries, names of datasets, and the chunks of text if the file tells."""
