"""Linux, macOS and other POSIX systems."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

from dynquant.systems.base import Access

assert sys.platform != "win32"

_FLAGS: dict[Access, int] = {
    # Without O_NONBLOCK, opening a pipe blocks until a process opens it for writing.
    "read": os.O_RDONLY | os.O_NONBLOCK,
    "change": os.O_RDWR,
    "make": os.O_RDWR | os.O_CREAT,
    "make new": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}

_FALLOCATE = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
"""fallocate(2) of Linux; macOS does not have it."""


class Posix:
    """The calls of POSIX, and what Linux and macOS have besides."""

    renames_open = True
    drops_pages = hasattr(os, "posix_fadvise")

    def open(self, path: Path, access: Access, *, follow: bool) -> int:
        """Open a file."""
        flags = _FLAGS[access] | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        return os.open(path, flags, 0o666)

    def read_at(self, file: int, into: memoryview, position: int) -> int:
        """Read at a position."""
        return os.preadv(file, [into], position)

    def write_at(self, file: int, content: memoryview, position: int) -> int:
        """Write at a position."""
        return os.pwrite(file, content, position)

    def lock(self, file: int, *, shared: bool) -> None:
        """Lock a file; processes on other machines see the lock where the file system has it."""
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def reserve(self, file: int, n_bytes: int) -> None:
        """Set a file's size and reserve its blocks.

        Not os.posix_fallocate: on file systems without this call (network disks, ZFS), glibc writes
        into every block instead, which takes hours.
        """
        if _FALLOCATE is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        zero = ctypes.c_int64(0)
        while _FALLOCATE(ctypes.c_int(file), ctypes.c_int(0), zero, ctypes.c_int64(n_bytes)):
            if ctypes.get_errno() != errno.EINTR:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def sync(self, file: int) -> None:
        """Sync a file."""
        # fsync(2) of macOS leaves data in the cache of the drive; its manual names this call.
        barrier = getattr(fcntl, "F_FULLFSYNC", None)
        if barrier is None:
            os.fsync(file)
        else:
            fcntl.fcntl(file, barrier)

    def sync_folder(self, folder: Path) -> None:
        """Sync the names in a folder."""
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def forget(self, file: int) -> None:
        """Drop a file's pages; macOS has no call for it."""
        if sys.platform != "darwin":
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def allocated_bytes(self, path: Path) -> int:
        """Return the bytes that a file occupies."""
        # st_blocks counts units of 512 bytes, whatever the block size of the file system (stat(2)).
        return path.lstat().st_blocks * 512

    def refusal_of(self, name: str) -> str | None:
        """Return None: POSIX has all names but those that a path cannot express."""
        del name
        return None

    def memory_bytes(self) -> int:
        """Return the bytes of RAM."""
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def n_cpus(self) -> int:
        """Return the CPUs of this process's affinity; macOS has none."""
        if sys.platform != "darwin":
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    @contextlib.contextmanager
    def signals_held(self) -> Generator[None]:
        """Block signals; threads inherit what is blocked."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
