"""A POSIX system without the calls that Windows does not have, and with its rules for open files.

Locks are those of flock(2): like those of LockFileEx, they belong to the open file, and two opened
files of one process exclude each other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from typing import Any

from dynquant.systems import use
from dynquant.systems.portable import Portable

MISSING = {
    os: (
        *("pread", "preadv", "pwrite", "pwritev", "readv", "writev"),
        *("posix_fadvise", "posix_fallocate", "sched_getaffinity", "sysconf"),
    ),
    signal: ("pthread_sigmask",),
}
"""Calls that Python has on POSIX systems only, and that no library beside dynquant needs."""


def flock(file: int, shared: bool) -> None:
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def portable() -> Portable:
    """Return the portable calls with this system's locks."""
    # O_NONBLOCK: files of Windows include no pipes, which tests make here.
    return Portable(flock, lambda: 64 << 30, os.O_NONBLOCK)


def forget_posix() -> None:
    """Use the portable calls, remove POSIX's, and refuse to rename and remove open files."""
    use(portable())
    for module, names in MISSING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    os.unlink = os.remove = _unless_open(os.unlink)  # type: ignore[assignment]
    os.rename = _unless_open(os.rename)  # type: ignore[assignment]
    os.replace = _unless_open(os.replace)  # type: ignore[assignment]


def _unless_open(call: Callable[..., Any]) -> Callable[..., Any]:
    def checked(path: Any, *others: Any, **options: Any) -> Any:
        for each in (path, *others):
            if options.get("dir_fd") is None and is_open(os.fspath(each)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(each))
        return call(path, *others, **options)

    return checked


def is_open(path: str | bytes) -> bool:
    """Return whether this process has a file open."""
    try:
        there = os.lstat(path)
    except OSError:
        return False
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if os.path.samestat(os.fstat(int(name)), there):
                return True
        except OSError:
            continue
    return False
