"""The calls of a system with nothing but what Python has on all of them, as Windows needs them.

What no portable function does is given: locks, the size of the memory, flags.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

from dynquant.systems.base import Access

_FLAGS: dict[Access, int] = {
    "read": os.O_RDONLY,
    "change": os.O_RDWR,
    "make": os.O_RDWR | os.O_CREAT,
    "make new": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}

_MOST = 1 << 24
"""Bytes of one read, which are copied: 16 MiB."""

_N_LOCKS = 64
"""Locks that files share by their numbers; a conversion has few files open at once."""

_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9¹²³]) *(\..*)?", re.IGNORECASE
)
"""Names of devices, with any suffix ("Naming Files, Paths, and Namespaces", Microsoft)."""

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')

Handler = Callable[[int, FrameType | None], object]


class Portable:
    """A system without reads and writes at positions: they seek first, under a lock.

    lock:   locks a file, as `System.lock`
    memory: returns the bytes of RAM
    flags:  of `os.open`, besides those for reading, writing and creating
    """

    renames_open = False
    drops_pages = False

    def __init__(
        self,
        lock: Callable[[int, bool], None],
        memory: Callable[[], int],
        flags: int = 0,
    ) -> None:
        self._lock = lock
        self._memory = memory
        self._flags = flags
        self._positions = [threading.Lock() for _ in range(_N_LOCKS)]

    def open(self, path: Path, access: Access, *, follow: bool) -> int:
        """Open a file; links are recognized before, because no flag does."""
        if not follow and path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return os.open(path, _FLAGS[access] | self._flags, 0o666)

    def read_at(self, file: int, into: memoryview, position: int) -> int:
        """Read at a position, through a copy."""
        with self._positions[file % _N_LOCKS]:
            os.lseek(file, position, os.SEEK_SET)
            found = os.read(file, min(len(into), _MOST))
        into[: len(found)] = found
        return len(found)

    def write_at(self, file: int, content: memoryview, position: int) -> int:
        """Write at a position."""
        with self._positions[file % _N_LOCKS]:
            os.lseek(file, position, os.SEEK_SET)
            return os.write(file, content)

    def lock(self, file: int, *, shared: bool) -> None:
        """Lock a file."""
        self._lock(file, shared)

    def reserve(self, file: int, n_bytes: int) -> None:
        """Raise OSError: the caller sets the size without reserving."""
        del file, n_bytes
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def sync(self, file: int) -> None:
        """Sync a file; on Windows, this is FlushFileBuffers, which includes the drive's cache."""
        os.fsync(file)

    def sync_folder(self, folder: Path) -> None:
        """Do nothing: Windows cannot sync a folder."""
        del folder

    def forget(self, file: int) -> None:
        """Do nothing."""
        del file

    def allocated_bytes(self, path: Path) -> int:
        """Return the size of a file."""
        return path.lstat().st_size

    def refusal_of(self, name: str) -> str | None:
        """Return what is wrong with a name on Windows; `:` would name a stream inside a file."""
        if found := _FORBIDDEN.search(name):
            return f"Windows does not allow {found[0]!r} in names"
        if _RESERVED.fullmatch(name):
            return f"{name.split('.')[0]!r} is a device on Windows"
        if name.endswith((".", " ")):
            return "Windows does not allow names that end with a dot or a space"
        return None

    def memory_bytes(self) -> int:
        """Return the bytes of RAM."""
        return self._memory()

    def n_cpus(self) -> int:
        """Return the number of CPUs."""
        return os.cpu_count() or 1

    @contextlib.contextmanager
    def signals_held(self) -> Generator[None]:
        """Note signals, and raise them again at the end; only the main thread gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        noted: list[int] = []
        held = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, lambda n, _: noted.append(n)) for each in held}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
            for each in dict.fromkeys(noted):
                signal.raise_signal(each)
