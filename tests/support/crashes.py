"""Simulated crashes: processes killed at any moment, failing calls, and power losses.

A conversion changes the disk through a few calls of `os`, which are counted here. Each crash is
between two of these calls or within one.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from handmade import KEYS, computed_tensor, recipe

from dynquant.arch.base import Model
from dynquant.conversion import disk
from dynquant.conversion.result import Result
from dynquant.conversion.write import convert_plan
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.shards import Split
from dynquant.systems import system

CALLS = ("open", "pwrite", "fsync", "ftruncate", "fallocate", "replace", "unlink")
"""All calls with which a conversion changes the disk; pathlib's methods call them too."""


def home(call: str) -> tuple[Any, str]:
    """Return the object in which a call is looked up, and its name there."""
    if call == "pwrite":
        return system(), "write_at"
    return (disk if call == "fallocate" else os), call


def real_call(call: str) -> Any:
    """Return a call."""
    return getattr(*home(call))


MORE = "rules: [{role: ffn_down, type: Q4_K}, {role: token_embd, type: F16}]"

QUICK: dict[str, Any] = {"threads": 2, "chunk_bytes": 8192, "sync_seconds": 0.002}
"""Many small jobs that are recorded immediately, so that a crash can lose many records."""


def sharded_plan(n: int = 3, rows: int = 67, default: str = "Q8_0") -> Plan:
    """Return the plan of a model of four tensors of odd sizes in n shards."""
    shapes = {
        "token_embd.weight": (37, 256),
        "blk.0.ffn_down.weight": (rows, 512),
        "blk.0.attn_norm.weight": (257,),
        "blk.1.ffn_up_exps.weight": (3, rows, 256),
    }
    tensors = tuple(computed_tensor(name, *s, seed=i) for i, (name, s) in enumerate(shapes.items()))
    model = Model("llama", dict(KEYS), tensors, {})
    return make_plan(model, recipe(default, MORE), split=Split(max_tensors=-(-4 // n)))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the names and contents of the files in a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def made(plan: Plan, folder: Path, **options: Any) -> dict[str, bytes]:
    """Create a folder and return the files of an undisturbed conversion in it."""
    folder.mkdir()
    convert_plan(plan, folder / "x.gguf", **(QUICK | options))
    return contents(folder)


def looks_complete(folder: Path, expected: dict[str, bytes]) -> bool:
    """Return whether a runtime would load the output: the first shard has its final name."""
    return (folder / min(expected)).exists()


# ---- killed ----


def killed(step: Callable[[], object], when: Callable[[], object]) -> bool:
    """Run a step in a child process, which is killed (SIGKILL) as soon as `when` returns.

    Returns whether it was killed; False if it had already ended, which must be without an error.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            step()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    when()
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


# ---- failing ----


@dataclass
class Counter:
    """Counts calls, and is true at one of them."""

    at: int
    seen: int = 0

    def __call__(self) -> bool:
        self.seen += 1
        return self.seen == self.at


@contextmanager
def at_call(names: tuple[str, ...], number: int, act: Callable[[], object]) -> Generator[Counter]:
    """Run `act` before the number-th call; calls of all the names are counted together."""
    counter = Counter(number)

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if counter():
                act()
            return real(*args, **options)

        return call

    patches = [mock.patch.object(*home(n), wrapped(real_call(n))) for n in names]
    for patch in patches:
        patch.start()
    try:
        yield counter
    finally:
        for patch in patches:
            patch.stop()


def fails(code: int) -> Callable[[], object]:
    """Return a function that fails as a call of `os` does."""

    def act() -> object:
        raise OSError(code, os.strerror(code))

    return act


def dies() -> None:
    """Kill this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


# ---- without power ----

Entry = tuple[str, Any, Any, Any]
"""A call of a run: open (name, inode, whether the file was created), write (inode, position,
content), size (inode, size), sync (inode, number of calls before it), rename, unlink (names)."""

FOLDER = "the folder"


class Disk:
    """Simulates the content of a folder after a power loss at any moment of a run.

    Records all calls of a run in one folder. A write or a change of size is lost or torn unless
    its file was synced afterwards; a change of a name is lost unless the folder was. Each is lost
    or kept separately.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[Entry] = []
        self._before = contents(folder)
        self._inodes: dict[int, Any] = {p.stat().st_ino: p.name for p in folder.iterdir()}
        self._inodes[folder.stat().st_ino] = FOLDER
        self._files: dict[int, Any] = {}

    @contextmanager
    def recorded(self) -> Generator[None]:
        """Record the calls inside the `with` block."""
        real = {name: real_call(name) for name in CALLS}

        def note(call: str, a: Any = None, b: Any = None, c: Any = None) -> None:
            self.log.append((call, a, b, c))

        def open_(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            path = Path(path)
            is_made = path.parent == self.folder and not os.path.lexists(path)
            fd: int = real["open"](path, flags, *rest, **options)
            number = os.fstat(fd).st_ino
            if is_made:
                self._inodes[number] = len(self.log)
            self._files[fd] = self._inodes.get(number)
            note("open", path.name, self._files[fd], is_made)
            return fd

        def pwrite(fd: int, content: Any, position: int) -> int:
            n: int = real["pwrite"](fd, content, position)
            note("write", self._files[fd], position, bytes(memoryview(content)[:n]))
            return n

        def fsync(fd: int) -> None:
            # Writes during a sync may or may not be safe; here they are not.
            before = len(self.log)
            real["fsync"](fd)
            note("sync", self._files[fd], before)

        def ftruncate(fd: int, size: int) -> None:
            real["ftruncate"](fd, size)
            note("size", self._files[fd], size)

        def fallocate(fd: int, size: int) -> None:
            real["fallocate"](fd, size)
            note("size", self._files[fd], size)

        def replace(old: Any, new: Any) -> None:
            real["replace"](old, new)
            note("rename", Path(old).name, Path(new).name)

        def unlink(path: Any, **options: Any) -> None:
            real["unlink"](path, **options)
            note("unlink", Path(path).name)

        changed = (open_, pwrite, fsync, ftruncate, fallocate, replace, unlink)
        with ExitStack() as stack:
            for name, call in zip(CALLS, changed, strict=True):
                stack.enter_context(mock.patch.object(*home(name), call))
            yield

    def after(self, moment: int, rng: random.Random, lost: float) -> dict[str, bytes]:
        """Return the files of the folder after a power loss before the call with this number.

        lost: probability that a change that was not synced is lost
        """
        names: dict[str, Any] = {name: name for name in self._before}
        safe: dict[Any, bytes] = dict(self._before)
        since: dict[Any, list[tuple[int, Entry]]] = {}
        steps: list[Entry] = []
        for number, entry in enumerate(self.log[:moment]):
            call, a, b, c = entry
            if call in ("write", "size"):
                since.setdefault(a, []).append((number, entry))
            elif call == "sync" and a == FOLDER:
                _name(names, steps)
                steps = []
            elif call == "sync":
                put = [e for i, e in since.get(a, ()) if i < b]
                safe[a] = _written(safe.get(a, b""), put)
                since[a] = [(i, e) for i, e in since.get(a, ()) if i >= b]
            elif call in ("rename", "unlink") or c:
                steps.append(entry)
        _name(names, [step for step in steps if rng.random() >= lost])
        found: dict[str, bytes] = {}
        for name, inode in names.items():
            left = [_torn(e, rng) for _, e in since.get(inode, ()) if rng.random() >= lost]
            found[name] = _written(safe.get(inode, b""), left)
        return found


def _torn(entry: Entry, rng: random.Random) -> Entry:
    """Truncate some writes."""
    call, inode, position, content = entry
    if call == "size" or rng.random() < 0.7:
        return entry
    return call, inode, position, content[: rng.randrange(len(content) + 1)]


def _written(safe: bytes, entries: list[Entry]) -> bytes:
    """Return the content of a file after some writes and changes of size."""
    content = bytearray(safe)
    for call, _, position, written in entries:
        if call == "size":
            content = content[:position].ljust(position, b"\0")
        else:
            content = content.ljust(position, b"\0")
            content[position : position + len(written)] = written
    return bytes(content)


def _name(names: dict[str, Any], steps: list[Entry]) -> None:
    """Apply changes of names."""
    for call, a, b, _ in steps:
        if call == "open":
            names[a] = b
        elif call == "unlink":
            names.pop(a, None)
        elif a in names:
            names[b] = names.pop(a)


def restored(folder: Path, content: dict[str, bytes]) -> Path:
    """Write files into a folder, and delete all others."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, written in content.items():
        (folder / name).write_bytes(written)
    return folder


def resumed(plan: Plan, folder: Path) -> Result:
    """Resume an interrupted conversion."""
    return convert_plan(plan, folder / "x.gguf", **QUICK)


FULL, BROKEN = errno.ENOSPC, errno.EIO
