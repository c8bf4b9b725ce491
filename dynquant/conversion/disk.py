"""What a conversion asks of a disk: files that are locked, sized, synced, and errors that are told.

fsync is what makes a crash harmless; in which order it is called is in resume.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from dynquant.errors import ConvertError

_FULL = (errno.ENOSPC, errno.EDQUOT)

_FALLOCATE = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
"""fallocate(2) of Linux; macOS has none."""


@contextlib.contextmanager
def os_errors_as(path: Path, what: str, n_bytes: int = 0) -> Generator[None]:
    """Turn an OSError into a ConvertError that names the file and, on a full disk, the sizes."""
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise ConvertError(full(path, n_bytes, free_bytes(path.parent))) from e
        raise ConvertError(f"{path}: {what}: {e.strerror}") from e


def full(path: Path, needed: int, free: int) -> str:
    """Return what is to be told of a disk that lacks room; needed: 0 where nobody knows."""
    if not needed:
        return f"{path}: the disk is full ({free:,} bytes free); make room, and run it again"
    return (
        f"{path}: needs {needed:,} bytes, but the disk has {free:,} free; make room, or name an"
        " output on another disk"
    )


def free_bytes(folder: Path) -> int:
    """Return the bytes that a disk has for this user."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def allocated_bytes(path: Path) -> int:
    """Return the bytes of a disk that a file has, however long it is."""
    try:
        # st_blocks counts units of 512 bytes whatever the file system's own block is (stat(2)).
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def locked_file(path: Path) -> int:
    """Open or make a file that nobody else has locked; raise ConvertError if somebody has."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            lock(fd, path)
            if os.path.samestat(os.fstat(fd), path.lstat()):
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        # The run that held the lock took the file away in the meantime: it has finished.
        os.close(fd)


def lock(fd: int, path: Path) -> None:
    """Lock a file until it is closed; where locks are not to be had (network disks) it is not."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise ConvertError(f"{path}: another dynquant is writing it; wait, or stop that one") from e
    except OSError:
        return


def take_away(part: Path) -> None:
    """Remove an old `.part`; raise ConvertError if another run has it (of shards named alike)."""
    with contextlib.suppress(OSError):
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            lock(fd, part)
        finally:
            os.close(fd)
    part.unlink(missing_ok=True)


def reserve(fd: int, n_bytes: int) -> None:
    """Give a file its size and, where the system can, its blocks: a full disk shows at once."""
    try:
        fallocate(fd, n_bytes)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, n_bytes)


def fallocate(fd: int, n_bytes: int) -> None:
    """Reserve a file's blocks, which then are its size; raise OSError where that cannot be done.

    Not os.posix_fallocate: where a file system has no such call (network disks, ZFS), glibc writes
    into every block instead, hours of it.
    """
    if _FALLOCATE is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    zero = ctypes.c_int64(0)
    while _FALLOCATE(ctypes.c_int(fd), ctypes.c_int(0), zero, ctypes.c_int64(n_bytes)):
        if ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write_whole(path: Path, text: str) -> None:
    """Write a file and put it on the disk; what has its name is taken away."""
    content = text.encode()
    with os_errors_as(path, "cannot be written", len(content)):
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def sync_file(fd: int) -> None:
    """Put on the disk what was written to a file, also what the drive itself still holds back."""
    # fsync(2) of macOS leaves it in the drive's cache, and names this instead.
    barrier = getattr(fcntl, "F_FULLFSYNC", None)
    if barrier is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, barrier)


def sync_folder(folder: Path) -> None:
    """Put the names of a folder on the disk."""
    # Some network file systems cannot sync a folder, and one that may not be listed cannot be
    # opened; the files themselves are safe.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
