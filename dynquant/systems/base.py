"""The calls of a system that dynquant needs and that systems name differently."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

Access = Literal["read", "change", "make", "make new"]
"""To read; to read and write a file that exists; one that may exist; one that must not exist."""


class System(Protocol):
    """Calls that raise OSError, and are callable from several threads at once.

    A file is the descriptor that `open` returns; it is closed with `os.close`.
    """

    renames_open: bool
    """Whether a file can be renamed and removed while it is open."""

    drops_pages: bool
    """Whether `forget` drops pages."""

    def open(self, path: Path, access: Access, *, follow: bool) -> int:
        """Open a file; no child inherits it, and a pipe does not block.

        follow: a link is followed; else it is an error
        """
        ...

    def read_at(self, file: int, into: memoryview, position: int) -> int:
        """Read at most `into` at a position; return the bytes read, 0 at the end of the file."""
        ...

    def write_at(self, file: int, content: memoryview, position: int) -> int:
        """Write at most `content` at a position; return the bytes written."""
        ...

    def lock(self, file: int, *, shared: bool) -> None:
        """Lock a file until it is closed; raise BlockingIOError if another process has locked it.

        shared: as one of several writers, who all lock it so

        Raises another OSError if the file system has no locks.
        """
        ...

    def reserve(self, file: int, n_bytes: int) -> None:
        """Set a file's size and reserve its blocks; raise OSError if that is not supported."""
        ...

    def sync(self, file: int) -> None:
        """Sync a file to the disk, including the cache of the drive."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Sync the names in a folder to the disk."""
        ...

    def forget(self, file: int) -> None:
        """Drop a file's synced pages from the page cache."""
        ...

    def allocated_bytes(self, path: Path) -> int:
        """Return the bytes that a file occupies on the disk; links are not followed."""
        ...

    def refusal_of(self, name: str) -> str | None:
        """Return why the system cannot have a file of a name; None if it can."""
        ...

    def memory_bytes(self) -> int:
        """Return the bytes of RAM of this machine."""
        ...

    def n_cpus(self) -> int:
        """Return the number of CPUs that this process may use."""
        ...

    def signals_held(self) -> AbstractContextManager[None]:
        """Let this thread's SIGINT and SIGTERM wait for the end of a `with` block.

        Threads that are started in it do not get them.
        """
        ...
