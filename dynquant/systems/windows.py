"""Windows: the portable calls, with locks and the size of the memory from kernel32."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from dynquant.systems.portable import Portable

_FAIL_IMMEDIATELY, _EXCLUSIVE = 1, 2
"""LOCKFILE_FAIL_IMMEDIATELY and LOCKFILE_EXCLUSIVE_LOCK of minwinbase.h."""

_LOCK_VIOLATION, _IO_PENDING = 33, 997
"""ERROR_LOCK_VIOLATION and ERROR_IO_PENDING of winerror.h: another process has the lock."""

_FAR = 1 << 62
"""Where the byte is that stands for a whole file. Locks of Windows are mandatory, so it must be a
byte that nobody reads or writes. It may lie behind the end of the file."""


class Overlapped(ctypes.Structure):
    """OVERLAPPED of minwinbase.h: 32 bytes on 64-bit systems, 20 on others."""

    _fields_ = (
        ("internal", ctypes.c_size_t),
        ("internal_high", ctypes.c_size_t),
        ("offset", ctypes.c_uint32),
        ("offset_high", ctypes.c_uint32),
        ("event", ctypes.c_void_p),
    )


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h, 64 bytes."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    )


if sys.platform == "win32":
    import msvcrt

    _KERNEL = ctypes.WinDLL("kernel32", use_last_error=True)
    _KERNEL.LockFileEx.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.POINTER(Overlapped),
    )
    _KERNEL.LockFileEx.restype = ctypes.c_int
    _KERNEL.GlobalMemoryStatusEx.argtypes = (ctypes.POINTER(MemoryStatus),)
    _KERNEL.GlobalMemoryStatusEx.restype = ctypes.c_int

    def _lock(file: int, shared: bool) -> None:
        """Lock the byte of a file that stands for all of it; closing the file unlocks it.

        Not msvcrt.locking, which has no shared locks and no positions beyond 2 GiB.
        """
        flags = _FAIL_IMMEDIATELY | (0 if shared else _EXCLUSIVE)
        at = Overlapped(offset=_FAR & 0xFFFFFFFF, offset_high=_FAR >> 32)
        if not _KERNEL.LockFileEx(msvcrt.get_osfhandle(file), flags, 0, 1, 0, ctypes.byref(at)):
            code = ctypes.get_last_error()
            if code in (_LOCK_VIOLATION, _IO_PENDING):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            raise ctypes.WinError(code)

    def _memory() -> int:
        status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
        if not _KERNEL.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise ctypes.WinError(ctypes.get_last_error())
        return int(status.total_physical)

    def windows() -> Portable:
        """Return the calls of Windows."""
        # Without O_BINARY, line breaks would be translated.
        return Portable(_lock, _memory, os.O_BINARY | os.O_NOINHERIT)
