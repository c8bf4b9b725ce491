"""A file elsewhere: its ranges are requested, or it is copied here for as long as it is needed."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from dynquant.errors import CheckpointError
from dynquant.stored_files import LocalFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

_HEAD_READ = 1 << 16
"""Bytes of the first request for a header; most headers are shorter."""

_HEAD_KEPT = 1 << 24
"""Limit on the bytes at the beginning of a file that are kept in memory."""

_TRIES = 6
"""Answers that are too short or refused, to one read, before it fails."""

WAIT = 0.5
"""Seconds before the first repetition after an answer without any byte; doubled each time."""


class Ranges(Protocol):
    """Requests for one file; several threads call it at once.

    name:   as the user knows the file: a URL
    n_bytes, sha256: as the server states them; sha256 is None if it does not
    """

    name: str
    n_bytes: int
    sha256: str | None

    def version(self) -> Mapping[str, str]:
        """Return facts that change when the content changes."""
        ...

    def fetch(self, offset: int, into: memoryview) -> int:
        """Request the bytes at `offset` once; return how many arrived, from the first on.

        Raises CheckpointError if the server refuses, or if the file changed.
        """
        ...

    def download(self, folder: Path) -> Path:
        """Download the whole file, or resume that; return its path in the folder."""
        ...


class RemoteFile:
    """A file elsewhere; see `StoredFile`.

    is_copied: a conversion downloads the whole file when it needs the first row, and deletes it
               after the last; otherwise rows are read by ranges
    """

    is_remote = True

    def __init__(self, path: Path, ranges: Ranges, *, is_copied: bool = False) -> None:
        self.path = path
        self.is_copied = is_copied
        self._ranges = ranges
        self._head = bytearray()
        self._head_lock = threading.Lock()
        self._copy_lock = threading.Lock()
        self._folder: Path | None = None
        self._copy: LocalFile | None = None

    @property
    def name(self) -> str:
        """The URL of the file."""
        return self._ranges.name

    @property
    def sha256(self) -> str | None:
        """The hash that the server states."""
        return self._ranges.sha256

    def size(self) -> int:
        """Return its bytes."""
        return self._ranges.n_bytes

    def version(self) -> Mapping[str, str]:
        """Return facts that change when the content changes."""
        return self._ranges.version()

    def open(self) -> BinaryIO:
        """Return a view of the file; what is read at its beginning is kept in memory."""
        return io.BufferedReader(_View(self), _HEAD_READ)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes at `offset`; raise CheckpointError if that fails."""
        copy = self._copied()
        if copy is not None:
            copy.read(offset, into)
        else:
            self.read_range(offset, into)

    def read_range(self, offset: int, into: memoryview) -> None:
        """Fill `into` by requests for ranges; those that are answered too shortly are repeated."""
        if offset + len(into) > self.size():
            raise CheckpointError(
                f"{self.name}: ends at byte {self.size()},"
                f" {offset + len(into) - self.size()} bytes too early"
            )
        done = tries = 0
        wait = WAIT
        while done < len(into):
            n = self._ranges.fetch(offset + done, into[done:])
            done += n
            if done == len(into):
                return
            tries += 1
            if tries == _TRIES:
                raise CheckpointError(
                    f"{self.name}: read at byte {offset + done}: {tries} answers of the server"
                    " were too short or refused; check the connection, then run the same command"
                    " again"
                )
            if n == 0:
                time.sleep(wait)
                wait *= 2

    def read_head(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes at `offset`; those that follow what was read are kept."""
        with self._head_lock:
            known, stop = len(self._head), offset + len(into)
            if offset > known or stop > _HEAD_KEPT:
                self.read_range(offset, into)
                return
            if stop > known:
                more = bytearray(stop - known)
                self.read_range(known, memoryview(more))
                self._head += more
            into[:] = self._head[offset:stop]

    def copy_into(self, folder: Path | None) -> None:
        """Download the file into a folder at the next read; None reads by ranges again."""
        self.forget()
        self._folder = folder

    def _copied(self) -> LocalFile | None:
        """Return the copy of the file, which is made at the first call; None without one."""
        with self._copy_lock:
            if self._copy is None and self._folder is not None:
                path = self._ranges.download(self._folder)
                self._check_copy(path)
                self._copy = LocalFile(path)
            return self._copy

    def _check_copy(self, path: Path) -> None:
        """Raise CheckpointError, and remove the copy, if it is not the file that was announced."""
        found, wanted = path.stat().st_size, self.size()
        if found == wanted and self.sha256:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 == self.sha256:
                return
            what = f"its sha256 is {sha256}, but the server states {self.sha256}"
        elif found == wanted:
            return
        else:
            what = f"it has {found} bytes, but the server states {wanted}"
        path.unlink()
        raise CheckpointError(
            f"{self.name}: was downloaded, but {what}; the copy is removed, run the same command"
            " again"
        )

    def forget(self) -> None:
        """Delete the copy; later reads request ranges."""
        with self._copy_lock:
            if self._copy is not None:
                with suppress(FileNotFoundError):
                    self._copy.path.unlink()
                self._folder = self._copy = None


class _View(io.RawIOBase):
    """A remote file as a stream; each read is a request unless the bytes are known."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._file.size())[whence]
        return self._at

    def readinto(self, into: Buffer, /) -> int:
        view = memoryview(into).cast("B")
        n = max(0, min(len(view), self._file.size() - self._at))
        if n:
            self._file.read_head(self._at, view[:n])
            self._at += n
        return n
