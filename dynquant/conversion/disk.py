"""Operations on the disk: locking, sizing and syncing files, with clear errors.

fsync makes a crash harmless; resume.py says in which order it is called.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from dynquant.errors import BusyError, ConvertError
from dynquant.systems import system

_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    return shutil.disk_usage(folder).free


def allocated_bytes(path: Path) -> int:
    """Return the bytes that a file occupies on the disk, whatever its length."""
    try:
        return system().allocated_bytes(path)
    except OSError:
        return 0


def locked_file(path: Path) -> int:
    """Open or create a file and lock it; raise ConvertError if another process has locked it."""
    while True:
        fd = system().open(path, "make", follow=False)
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
    _lock(fd, path, shared=False)


def share(fd: int, path: Path) -> None:
    """Lock a file as one of several writers: no process can `lock` it until all have closed it."""
    _lock(fd, path, shared=True)


def _lock(fd: int, path: Path, *, shared: bool) -> None:
    try:
        system().lock(fd, shared=shared)
    except BlockingIOError as e:
        raise BusyError(f"{path}: another dynquant is writing it; wait for it, or stop it") from e
    except OSError:
        return


def remove_part(part: Path) -> None:
    """Remove an old `.part`; raise ConvertError if another run uses it (same shard names)."""
    with contextlib.suppress(OSError):
        fd = system().open(part, "read", follow=False)
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
    """Set a file's size and reserve its blocks; raise OSError if that is not supported."""
    system().reserve(fd, n_bytes)


def write_at(fd: int, path: Path, content: memoryview | bytes, position: int, size: int) -> None:
    """Write all of `content` at a position; callable from several threads at once.

    path, size: of the file, for messages
    """
    view, done = memoryview(content), 0
    with os_errors_as(path, "cannot be written", size):
        while done < len(view):
            done += system().write_at(fd, view[done:], position + done)


def read_at(fd: int, path: Path, into: memoryview, position: int) -> None:
    """Fill `into` with the bytes at a position; callable from several threads at once.

    Raises ConvertError if the file ends before.
    """
    done = 0
    with os_errors_as(path, "cannot be read"):
        while done < len(into):
            n = system().read_at(fd, into[done:], position + done)
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
    system().sync(fd)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk."""
    # Some network file systems cannot sync a folder, and one that may not be listed cannot be
    # opened; the files themselves are safe.
    with contextlib.suppress(OSError):
        system().sync_folder(folder)
