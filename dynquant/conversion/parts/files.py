"""The files that a part writes into: the shared `.part` files, or a separate one.

OUT.gguf.part               shared: final size, every part writes its rows at their places
OUT.gguf.3-of-16.rows       separate: the part's rows one after the other, without gaps
OUT.gguf.3-of-16.journal    which rows are safe, as journal.py has it
OUT.gguf.3-of-16.json       that the part is complete, and the hashes of its source files
"""

from __future__ import annotations

import os
from bisect import bisect_right
from pathlib import Path

from dynquant.conversion.disk import (
    lock,
    os_errors_as,
    read_at,
    reserve,
    share,
    sync_file,
    write_at,
)
from dynquant.conversion.layout import Layout
from dynquant.conversion.output import part_path
from dynquant.conversion.parts.share import Part
from dynquant.conversion.scope import Scope
from dynquant.errors import BusyError
from dynquant.systems import system


def journal_of(out: Path, part: Part) -> Path:
    """Return the path of a part's journal."""
    return Path(f"{out}.{part.number}-of-{part.count}.journal")


def rows_of(out: Path, part: Part) -> Path:
    """Return the path of the separate file with a part's rows."""
    return Path(f"{out}.{part.number}-of-{part.count}.rows")


def report_of(out: Path, part: Part) -> Path:
    """Return the path of the file that says that a part is complete."""
    return Path(f"{out}.{part.number}-of-{part.count}.json")


class SharedFiles:
    """The `.part` files of an output, which all parts write at once; callable from any thread.

    Several processes, on several machines, write different bytes. Each creates the files and their
    headers if no other has, with the same content.
    """

    def __init__(self, out: Path, layout: Layout) -> None:
        """Open or create the files; raise ConvertError if a run of the whole output uses them."""
        self._paths = [part_path(path) for path in layout.paths(out)]
        self._sizes = [file.file_bytes for file in layout.files]
        self._fds: list[int] = []
        try:
            for path, file in zip(self._paths, layout.files, strict=True):
                with os_errors_as(path, "cannot be created", file.file_bytes):
                    self._fds.append(system().open(path, "make", follow=False))
                    share(self._fds[-1], path)
                    if os.fstat(self._fds[-1]).st_size != file.file_bytes:
                        reserve(self._fds[-1], file.file_bytes)
                self.write(len(self._fds) - 1, file.header, 0)
        except BaseException:
            self.close()
            raise

    def write(self, file: int, blocks: memoryview | bytes, position: int) -> None:
        """Write blocks at a position of an output file."""
        write_at(self._fds[file], self._paths[file], blocks, position, self._sizes[file])

    def read(self, file: int, into: memoryview, position: int) -> None:
        """Fill `into` with the bytes at a position of an output file."""
        read_at(self._fds[file], self._paths[file], into, position)

    def sync(self) -> None:
        """Sync all files to the disk."""
        for fd, path in zip(self._fds, self._paths, strict=True):
            with os_errors_as(path, "cannot be finished"):
                sync_file(fd)

    def forget(self) -> None:
        """Drop synced pages from the page cache."""
        for fd in self._fds:
            system().forget(fd)

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.pop())


class RowsFile:
    """A part's rows in a file that no other part writes; callable from any thread.

    Blocks are addressed as in the output, by its file and the position in it.
    """

    def __init__(self, path: Path, scope: Scope) -> None:
        """Open or create the file; raise ConvertError if another process uses it."""
        self._path = path
        self._starts: list[tuple[int, int]] = []
        self._places: list[int] = []
        n_bytes = 0
        for tensor, rows in scope.tensors:
            self._starts.append((tensor.file, tensor.position + rows.start * tensor.row_size))
            self._places.append(n_bytes)
            n_bytes += len(rows) * tensor.row_size
        self._size = n_bytes
        with os_errors_as(path, "cannot be created", n_bytes):
            self._fd = system().open(path, "make", follow=False)
            try:
                lock(self._fd, path)
                if os.fstat(self._fd).st_size != n_bytes:
                    reserve(self._fd, n_bytes)
            except BusyError:
                self.close()
                raise
            except BaseException:
                is_empty = os.fstat(self._fd).st_size == 0
                self.close()
                if is_empty:
                    path.unlink()
                raise

    def _place(self, file: int, position: int) -> int:
        """Return where in this file a position of an output file is."""
        index = bisect_right(self._starts, (file, position)) - 1
        return self._places[index] + position - self._starts[index][1]

    def write(self, file: int, blocks: memoryview | bytes, position: int) -> None:
        """Write the blocks of a position of an output file."""
        write_at(self._fd, self._path, blocks, self._place(file, position), self._size)

    def read(self, file: int, into: memoryview, position: int) -> None:
        """Fill `into` with the bytes of a position of an output file."""
        read_at(self._fd, self._path, into, self._place(file, position))

    def sync(self) -> None:
        """Sync the file to the disk."""
        with os_errors_as(self._path, "cannot be finished"):
            sync_file(self._fd)

    def forget(self) -> None:
        """Drop synced pages from the page cache."""
        system().forget(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def parts_beside(out: Path, suffix: str) -> list[Part]:
    """Return the parts that have a file with a suffix, such as ".journal", beside an output."""
    prefix = f"{out.name}."
    found: list[Part] = []
    for name in (path.name for path in out.parent.iterdir()):
        if name.startswith(prefix) and name.endswith(suffix):
            middle = name.removeprefix(prefix).removesuffix(suffix)
            try:
                found.append(Part.parse(middle.replace("-of-", "/")))
            except ValueError:
                continue
    return sorted(found, key=lambda p: (p.count, p.number))
