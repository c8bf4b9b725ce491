"""The records of a journal: 72 bytes for each range of rows that is on the disk.

A conversion of 700 GB has millions of them: they stay packed, and only those of one tensor at a
time become objects.

    u32 number of the tensor, u64 first row, u64 last row + 1, u64 xxh3_64 of the blocks,
    five f64 sums of errors, u32 crc32 of the record so far; little-endian
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dynquant.conversion.jobs import Done
from dynquant.quants.error import NO_ERROR, ErrorSums

_RECORD = struct.Struct(f"<IQQQ{len(NO_ERROR)}d")
_CHECK = struct.Struct("<I")
SIZE = _RECORD.size + _CHECK.size

_FIELDS = np.dtype(
    [("tensor", "<u4"), ("start", "<u8"), ("stop", "<u8"), ("checksum", "<u8"),
     ("sums", "<f8", (len(NO_ERROR),)), ("check", "<u4")]
)  # fmt: skip

COMPLETE = Done(2**32 - 1, 0, 0, 0)
"""Records that all rows are written and synced; only the renaming of the files is left."""


def packed(done: Done) -> bytes:
    """Return a record."""
    record = _RECORD.pack(done.tensor, done.start, done.stop, done.checksum, *done.sums)
    return record + _CHECK.pack(zlib.crc32(record))


def n_whole(content: bytes) -> int:
    """Return the number of whole records before the first torn one."""
    view = memoryview(content)
    for start in range(0, len(content) - SIZE + 1, SIZE):
        (check,) = _CHECK.unpack_from(content, start + _RECORD.size)
        if zlib.crc32(view[start : start + _RECORD.size]) != check:
            return start // SIZE
    return len(content) // SIZE


class Records:
    """Whole records, in the order in which they were written."""

    def __init__(self, content: bytes = b"") -> None:
        self._content = content
        self._fields: NDArray[np.void] = np.frombuffer(content, _FIELDS)

    def __len__(self) -> int:
        return len(self._fields)

    def __iter__(self) -> Iterator[Done]:
        return map(self.at, range(len(self)))

    def at(self, index: int) -> Done:
        """Return one of them."""
        tensor, start, stop, checksum, *sums = _RECORD.unpack_from(self._content, index * SIZE)
        return Done(tensor, start, stop, checksum, ErrorSums(*sums))

    @property
    def are_complete(self) -> bool:
        """Whether COMPLETE is among them."""
        return bool((self._fields["tensor"] == COMPLETE.tensor).any())

    def by_tensor(self, n_rows: Sequence[int]) -> Mapping[int, Sequence[Done]]:
        """Return the ranges of each tensor in order; ranges that overlap or exceed it are left out.

        n_rows: of each tensor

        Of two records of the same rows the later one counts: the earlier checksum did not match.
        """
        return _ByTensor(self, self._fields, n_rows)


class _ByTensor(Mapping[int, Sequence[Done]]):
    """The ranges of each tensor, unpacked on access."""

    def __init__(self, records: Records, fields: NDArray[np.void], n_rows: Sequence[int]) -> None:
        self._records, self._n_rows = records, n_rows
        later_first = -np.arange(len(fields))
        self._order = np.lexsort((later_first, fields["stop"], fields["start"], fields["tensor"]))
        tensors = fields["tensor"][self._order]
        self._bounds = np.searchsorted(tensors, np.arange(len(n_rows) + 1)).tolist()

    def __len__(self) -> int:
        return len(self._n_rows)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._n_rows)))

    def __getitem__(self, tensor: int) -> Sequence[Done]:
        if not 0 <= tensor < len(self._n_rows):
            raise KeyError(tensor)
        found: list[Done] = []
        end = 0
        for i in self._order[self._bounds[tensor] : self._bounds[tensor + 1]].tolist():
            record = self._records.at(i)
            if end <= record.start < record.stop <= self._n_rows[tensor]:
                found.append(record)
                end = record.stop
        return found
