"""The older imatrix format of llama.cpp (.dat); every length in it is checked.

There is no magic. Little-endian; all numbers but the values are i32:

    n_entries
    n_entries times   length, name    n_calls    n_values, f32 values
    n_chunks          may be missing, then the next line is missing too
    length, dataset

The values are means times n_calls. All experts of a tensor are in one entry, without their counts.
For an expert that saw no token, llama.cpp writes n_calls as every value: a mean of one, which a
reader cannot distinguish from data.

Source: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from dynquant.checkpoint.gguf import MAX_NAME
from dynquant.errors import ImportanceError
from dynquant.importance.entry import Entry, Found
from dynquant.tensors import ShardFile

_MIN_ENTRY = 4 + 1 + 4 + 4 + 4  # bytes of the shortest entry: a name of one byte, one value
_NO_MAGIC = "not an imatrix: neither a GGUF nor llama.cpp's older .dat"


def read_legacy(path: Path, file: BinaryIO) -> Found:
    """Read a file of the older format; the values are not checked.

    Raises ImportanceError with the file and the byte offset of the problem.
    """
    return _Cursor(path, file).read()


class _Cursor:
    """Reads a file front to back; checks each length against the file's size."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.shard = ShardFile(path)
        self.size = file.seek(0, 2)
        file.seek(0)

    def error(self, what: str, offset: int | None = None) -> ImportanceError:
        where = self.file.tell() if offset is None else offset
        return ImportanceError(f"{self.path}: byte {where}: {what}")

    @property
    def left(self) -> int:
        return self.size - self.file.tell()

    def take(self, n: int, what: str) -> bytes:
        if n > self.left:
            raise self.error(f"{what} has {n} bytes, but the file ends after {self.left}")
        found = self.file.read(n)
        if len(found) < n:
            raise self.error("the file became shorter while it was read")
        return found

    def number(self, what: str, at_least: int = 0) -> int:
        found = int.from_bytes(self.take(4, what), "little", signed=True)
        if found < at_least:
            raise self.error(f"{what} is {found}", self.file.tell() - 4)
        return found

    def read(self) -> Found:
        if self.file.read(8) == b"version ":
            raise self.error("a Git LFS pointer, not the file; run `git lfs pull`", 0)
        self.file.seek(0)
        if self.left < 4:
            raise self.error(f"{self.left} bytes are too few for an imatrix")
        n_entries = self.number("the number of entries", -(1 << 31))
        if not 0 < n_entries <= self.left // _MIN_ENTRY:
            raise self.error(f"{n_entries} entries do not fit in {self.size} bytes; {_NO_MAGIC}", 0)
        entries: dict[str, Entry] = {}
        for _ in range(n_entries):
            entry = self.entry(entries)
            entries[entry.name] = entry
        chunk_count = self.number("the number of chunks") if self.left else None
        datasets: tuple[str, ...] = ()
        if self.left:
            dataset = self.take(self.number("the length of the dataset's name"), "the dataset")
            # A path is bytes; GGUF's keys are UTF-8.
            datasets = (dataset.decode("utf-8", "backslashreplace"),) if dataset else ()
        if self.left:
            raise self.error(f"{self.left} bytes after the end of the imatrix")
        return list(entries.values()), datasets, chunk_count

    def entry(self, before: Mapping[str, Entry]) -> Entry:
        at = self.file.tell()
        length = self.number("the length of a name", 1)
        if length > MAX_NAME:
            raise self.error(f"a tensor's name has {length} bytes; {_NO_MAGIC}", at)
        try:
            name = self.take(length, "a tensor's name").decode()
        except UnicodeDecodeError as e:
            raise self.error("a tensor's name is not UTF-8", at + 4) from e
        if not name.isprintable() or name in before:
            what = "appears twice" if name in before else "is not printable"
            raise self.error(f"the name {name!r} {what}", at)
        n_calls = self.number(f"the number of calls of {name}")
        n_values = self.number(f"the number of values of {name}", 1)
        if 4 * n_values > self.left:
            raise self.error(f"{name} has {n_values} values, but the file ends after {self.left}")
        offset = self.file.tell()
        self.file.seek(4 * n_values, 1)
        # If there are no calls, llama.cpp does not divide the values.
        return Entry(name, self.shard, offset, n_values, (n_calls or 1,))
