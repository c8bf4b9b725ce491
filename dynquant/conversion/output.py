"""The output file while it is made: `OUT.gguf.part` at final size, renamed when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Generator, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from dynquant.errors import ConvertError
from dynquant.plan.plan import Plan
from dynquant.tensors import ShardFile

_FULL = (errno.ENOSPC, errno.EDQUOT)


def part_path(out: Path) -> Path:
    """Return the name of an output while it is incomplete."""
    return out.with_name(out.name + ".part")


def check_output(plan: Plan, out: Path, n_bytes: int, *, force: bool) -> None:
    """Raise ConvertError, with all reasons, if a plan's file of n_bytes cannot become `out`."""
    problems: list[str] = []
    folder = out.parent
    if not folder.is_dir():
        problems.append(f"{folder}: is not a folder; make it first, or name another output")
    elif not os.access(folder, os.W_OK | os.X_OK):
        problems.append(f"{folder}: is not writable; name an output in another folder")
    else:
        # A .part from an earlier run is replaced, so that its blocks count as free.
        free = _free_bytes(folder) + _allocated_bytes(part_path(out))
        if free < n_bytes:
            problems.append(_full(out, n_bytes, free))
    if out.is_dir():
        problems.append(f"{out}: is a folder; name the file to write")
    elif what := _source(plan, out):
        problems.append(f"{out}: is {what}; name another output")
    elif os.path.lexists(out):
        if not out.is_file():
            problems.append(f"{out}: is not a regular file; name another output")
        elif not force:
            problems.append(f"{out}: exists; --force replaces it, or name another output")
    if what := _source(plan, part_path(out)):
        problems.append(f"{part_path(out)}: is {what}; name another output")
    ConvertError.raise_any(problems)


class PartFile:
    """`OUT.gguf.part`, locked, of final size, zero at first; ranges are written in any order."""

    def __init__(self, out: Path, n_bytes: int) -> None:
        """Make the file; raise ConvertError if it cannot be made or the disk has no room for it."""
        self.out = out
        self.path = part_path(out)
        self.n_bytes = n_bytes
        with _told(self.path, "cannot be made"):
            self._fd = _open_locked(self.path)
        try:
            with _told(self.path, "cannot be made", n_bytes):
                os.ftruncate(self._fd, 0)
                _reserve(self._fd, n_bytes)
        except ConvertError:
            self.path.unlink(missing_ok=True)
            self.close()
            raise

    def write(self, blocks: memoryview | bytes, position: int) -> None:
        """Write all of `blocks` at a position; callable from several threads at once."""
        view = memoryview(blocks)
        done = 0
        with _told(self.path, "cannot be written", self.n_bytes):
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], position + done)

    def finish(self) -> None:
        """Put everything on the disk, then give the file its name."""
        with _told(self.path, "cannot be finished", self.n_bytes):
            os.fsync(self._fd)
            self.path.replace(self.out)
            folder = os.open(self.out.parent, os.O_RDONLY)
            try:
                # Some network file systems cannot sync a folder; the file itself is safe there.
                with contextlib.suppress(OSError):
                    os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Close the file and its lock; what is not finished stays behind as `.part`."""
        os.close(self._fd)


def _open_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            # Where locks are not to be had (some network file systems) there are none.
            with contextlib.suppress(OSError):
                _lock(fd, path)
            if os.path.samestat(os.fstat(fd), path.lstat()):
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        # The run that held the lock renamed the file in the meantime: this is its finished output.
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise ConvertError(f"{path}: another dynquant is writing it; wait, or stop that one") from e


def _reserve(fd: int, n_bytes: int) -> None:
    """Give a file its size and, where the system can, its blocks: a full disk shows at once."""
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except AttributeError:
        os.ftruncate(fd, n_bytes)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, n_bytes)


@contextlib.contextmanager
def _told(path: Path, what: str, n_bytes: int = 0) -> Generator[None]:
    """Turn an OSError into a ConvertError that names the file and, on a full disk, the sizes."""
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise ConvertError(_full(path, n_bytes, _free_bytes(path.parent))) from e
        raise ConvertError(f"{path}: {what}: {e.strerror}") from e


def _full(path: Path, needed: int, free: int) -> str:
    return (
        f"{path}: needs {needed:,} bytes, but the disk has {free:,} free; make room, or name an"
        " output on another disk"
    )


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _allocated_bytes(path: Path) -> int:
    try:
        # st_blocks counts units of 512 bytes whatever the file system's own block is (stat(2)).
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def _source(plan: Plan, path: Path) -> str | None:
    """Return what a path is to the plan, where it is a file that the conversion reads."""
    try:
        there = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(there.st_mode):
        return None
    files = (*plan.files, *(p for t in plan.sources.values() for p in _files(t.source)))
    reads = dict.fromkeys(files, "a file of the model itself")
    if plan.imatrix:
        reads[plan.imatrix.path] = "the imatrix"
    same = (what for p, what in reads.items() if p.exists() and os.path.samestat(p.stat(), there))
    return next(same, None)


def _files(source: object) -> Iterable[Path]:
    """Yield the files that a source reads, whatever it is made of."""
    if isinstance(source, ShardFile):
        yield source.path
    elif is_dataclass(source):
        for f in fields(source):
            yield from _files(getattr(source, f.name))
    elif isinstance(source, (list, tuple)):
        for part in cast(Iterable[Any], source):
            yield from _files(part)
