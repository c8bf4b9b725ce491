"""Operations on the disk: locking, sizing and syncing files, with clear errors.

fsync makes a crash harmless; resume.py says in which order it is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from dynquant.errors import BusyError, ConvertError

_FULL = (errno.ENOSPC, errno.EDQUOT)

_FALLOCATE = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
"""fallocate(2) of Linux; macOS does not have it."""


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
    """Return the message for a full disk; needed: 0 if it is not known."""
    if not needed:
        return f"{path}: the disk is full ({free:,} bytes free); free some space and try again"
    return (
        f"{path}: needs {needed:,} bytes, but the disk has {free:,} free; free some space,"
        " or name an output on another disk"
    )


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free for this user."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def allocated_bytes(path: Path) -> int:
    """Return the bytes that a file occupies on the disk, whatever its length."""
    try:
        # st_blocks counts units of 512 bytes, whatever the block size of the file system (stat(2)).
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def locked_file(path: Path) -> int:
    """Open or create a file and lock it; raise ConvertError if another process has locked it."""
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
        # The run that held the lock removed the file in the meantime: it has finished.
        os.close(fd)


def lock(fd: int, path: Path) -> None:
    """Lock a file until it is closed, if the file system supports locks (network disks may not)."""
    _lock(fd, path, fcntl.LOCK_EX)


def share(fd: int, path: Path) -> None:
    """Lock a file as one of several writers: no process can `lock` it until all have closed it."""
    _lock(fd, path, fcntl.LOCK_SH)


def _lock(fd: int, path: Path, kind: int) -> None:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise BusyError(f"{path}: another dynquant is writing it; wait for it, or stop it") from e
    except OSError:
        return


def remove_part(part: Path) -> None:
    """Remove an old `.part`; raise ConvertError if another run uses it (same shard names)."""
    with contextlib.suppress(OSError):
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            lock(fd, part)
        finally:
            os.close(fd)
    part.unlink(missing_ok=True)


def reserve(fd: int, n_bytes: int) -> None:
    """Set a file's size and reserve its blocks if possible, so that a full disk shows at once."""
    try:
        fallocate(fd, n_bytes)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, n_bytes)


def fallocate(fd: int, n_bytes: int) -> None:
    """Set a file's size and reserve its blocks; raise OSError if that is not supported.

    Not os.posix_fallocate: on file systems without this call (network disks, ZFS), glibc writes
    into every block instead, which takes hours.
    """
    if _FALLOCATE is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    zero = ctypes.c_int64(0)
    while _FALLOCATE(ctypes.c_int(fd), ctypes.c_int(0), zero, ctypes.c_int64(n_bytes)):
        if ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write_at(fd: int, path: Path, content: memoryview | bytes, position: int, size: int) -> None:
    """Write all of `content` at a position; callable from several threads at once.

    path, size: of the file, for messages
    """
    view, done = memoryview(content), 0
    with os_errors_as(path, "cannot be written", size):
        while done < len(view):
            done += os.pwrite(fd, view[done:], position + done)


def read_at(fd: int, path: Path, into: memoryview, position: int) -> None:
    """Fill `into` with the bytes at a position; callable from several threads at once.

    Raises ConvertError if the file ends before.
    """
    done = 0
    with os_errors_as(path, "cannot be read"):
        while done < len(into):
            n = os.preadv(fd, [into[done:]], position + done)
            if n == 0:
                raise ConvertError(f"{path}: became shorter while it was being written")
            done += n


def write_whole(path: Path, text: str) -> None:
    """Write a file and sync it; an existing file of that name is removed."""
    content = text.encode()
    with os_errors_as(path, "cannot be written", len(content)):
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def sync_file(fd: int) -> None:
    """Sync a file to the disk, including the cache of the drive."""
    # fsync(2) of macOS leaves data in the cache of the drive; its manual names this call instead.
    barrier = getattr(fcntl, "F_FULLFSYNC", None)
    if barrier is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, barrier)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk."""
    # Some network file systems cannot sync a folder, and one that may not be listed cannot be
    # opened; the files themselves are safe.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
