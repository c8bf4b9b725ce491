"""Files that rows are read from: on this machine, or elsewhere and read by ranges.

Whoever reads rows does not know where they are. Several threads read one file at once.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol

from dynquant.errors import CheckpointError
from dynquant.systems import system
from dynquant.untrusted import open_regular


class StoredFile(Protocol):
    """A file that rows are read from."""

    @property
    def path(self) -> Path:
        """Its place on this machine, or the place that it would have if it were downloaded."""
        ...

    @property
    def sha256(self) -> str | None:
        """The hash of its content that its publisher states; None if there is none."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request to another machine."""
        ...

    def size(self) -> int:
        """Return its bytes."""
        ...

    def version(self) -> Mapping[str, str]:
        """Return facts that change when the content changes, by the names that users know.

        Asks for them again at each call. Raises CheckpointError if the file cannot be reached.
        """
        ...

    def open(self) -> BinaryIO:
        """Open the file to read from its beginning; raises OSError or CheckpointError."""
        ...

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes at `offset`; raise CheckpointError if that fails."""
        ...

    def forget(self) -> None:
        """Free what is kept of the file on this machine; reading it is slower then."""
        ...


Elsewhere = Mapping[Path, StoredFile]
"""Files that are not on this machine, by the place that they would have here."""

ALL_HERE: Elsewhere = MappingProxyType({})

REQUESTS_AT_ONCE = 8
"""Requests to other machines at once, where several files or tensors are needed."""


class LocalFile:
    """A file of this machine; opened at the first read, closed with the last reference."""

    is_remote = False
    sha256 = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._fd: int | None = None

    def _descriptor(self) -> int:
        with self._lock:
            if self._fd is None:
                self._fd = system().open(self.path, "read", follow=True)
                weakref.finalize(self, os.close, self._fd)
            return self._fd

    def _stat(self) -> os.stat_result:
        try:
            return self.path.stat()
        except OSError as e:
            raise CheckpointError(f"{self.path}: cannot be read: {e.strerror}") from e

    def size(self) -> int:
        """Return its bytes."""
        return self._stat().st_size

    def version(self) -> Mapping[str, str]:
        """Return when it was modified, without rounding."""
        seconds, rest = divmod(self._stat().st_mtime_ns, 10**9)
        text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
        return {"modified": f"{text}.{rest:09} UTC"}

    def open(self) -> BinaryIO:
        """Open the file to read from its beginning."""
        return open_regular(self.path)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes at `offset`; raise CheckpointError if that fails."""
        done = 0
        try:
            fd = self._descriptor()
            while done < len(into):
                n = system().read_at(fd, into[done:], offset + done)
                if n == 0:
                    raise CheckpointError(
                        f"{self.path}: ends at byte {offset + done}, {len(into) - done} bytes too"
                        " early; the file changed since it was opened"
                    )
                done += n
        except OSError as e:
            raise CheckpointError(f"{self.path}: read at byte {offset + done}: {e.strerror}") from e

    def forget(self) -> None:
        """Drop the file from the system's page cache."""
        with self._lock:
            if self._fd is not None:
                system().forget(self._fd)


def stored_file(path: Path | StoredFile, elsewhere: Elsewhere = ALL_HERE) -> StoredFile:
    """Return the file of a path: the one elsewhere if there is one, else that of this machine."""
    if isinstance(path, Path):
        return elsewhere.get(path) or LocalFile(path)
    return path


def is_there(path: Path, elsewhere: Elsewhere = ALL_HERE) -> bool:
    """Return whether a path can be read, here or elsewhere."""
    return path in elsewhere or path.exists()
