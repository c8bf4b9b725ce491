"""Both kinds of calls do the same; the oracles are plain files, and Python's names of Windows."""

from __future__ import annotations

import ctypes
import errno
import ntpath
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from without_posix import is_open, portable

from dynquant.systems.base import System
from dynquant.systems.posix import Posix
from dynquant.systems.windows import MemoryStatus, Overlapped

KINDS = {"posix": Posix, "portable": portable}


@pytest.fixture(params=KINDS)
def calls(request: pytest.FixtureRequest) -> System:
    return KINDS[request.param]()


@pytest.fixture
def opened(calls: System, tmp_path: Path) -> Iterator[int]:
    file = calls.open(tmp_path / "file", "make", follow=False)
    yield file
    os.close(file)


def test_writes_and_reads_at_positions_by_many_threads_meet_their_places(
    calls: System, opened: int, tmp_path: Path
) -> None:
    content = np.random.default_rng(0).integers(0, 256, 8 * 500 * 61, np.uint8).tobytes()
    wrong: list[int] = []

    def work(number: int) -> None:
        for place in range(number, 8 * 500, 8):
            position = 61 * place
            written = memoryview(content)[position : position + 61]
            assert calls.write_at(opened, written, position) == 61
            found = bytearray(61)
            if calls.read_at(opened, memoryview(found), position) != 61 or found != written:
                wrong.append(place)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert (tmp_path / "file").read_bytes() == content


def test_read_ends_at_the_end_of_the_file(calls: System, opened: int) -> None:
    calls.write_at(opened, memoryview(b"abc"), 0)
    found = bytearray(5)
    assert calls.read_at(opened, memoryview(found), 1) == 2
    assert found == b"bc\0\0\0"
    assert calls.read_at(opened, memoryview(found), 3) == 0


def test_lock_excludes_other_opened_files_until_it_is_closed(calls: System, tmp_path: Path) -> None:
    one, other = (calls.open(tmp_path / "file", "make", follow=False) for _ in range(2))
    calls.lock(one, shared=False)
    for shared in (False, True):
        with pytest.raises(BlockingIOError):
            calls.lock(other, shared=shared)
    os.close(one)
    calls.lock(other, shared=False)
    os.close(other)


def test_shared_locks_exclude_only_others(calls: System, tmp_path: Path) -> None:
    one, two, other = (calls.open(tmp_path / "file", "make", follow=False) for _ in range(3))
    calls.lock(one, shared=True)
    calls.lock(two, shared=True)
    with pytest.raises(BlockingIOError):
        calls.lock(other, shared=False)
    for file in (one, two, other):
        os.close(file)


def test_link_is_followed_only_if_asked_for(calls: System, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    os.close(calls.open(link, "read", follow=True))
    for access in ("read", "change", "make"):
        with pytest.raises(OSError) as e:
            calls.open(link, access, follow=False)
        assert e.value.errno == errno.ELOOP


def test_new_file_must_not_exist_and_changed_file_must(calls: System, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        calls.open(path, "change", follow=False)
    os.close(calls.open(path, "make new", follow=False))
    with pytest.raises(FileExistsError):
        calls.open(path, "make new", follow=False)
    os.close(calls.open(path, "make", follow=False))


def test_no_child_inherits_a_file(calls: System, opened: int) -> None:
    del calls
    assert not os.get_inheritable(opened)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_for_the_end_of_the_block(calls: System, number: signal.Signals) -> None:
    class ArrivedError(Exception):
        pass

    def arrive(*_: object) -> None:
        raise ArrivedError

    steps: list[str] = []
    before = signal.signal(number, arrive)
    try:
        with pytest.raises(ArrivedError):
            with calls.signals_held():
                signal.raise_signal(number)
                steps.append("after the signal")
            steps.append("after the block")
        assert signal.getsignal(number) is arrive
    finally:
        signal.signal(number, before)
    assert steps == ["after the signal"]


def test_signals_are_held_in_other_threads_too(calls: System) -> None:
    done: list[bool] = []

    def work() -> None:
        with calls.signals_held():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


NAMES = (
    "x.gguf",
    "ab:c.gguf",
    "a?.gguf",
    "CONOUT$.x",
    "nul .gguf",
    "com0",
    "NUL",
    "nul.gguf",
    "com1.gguf",
    "com¹",
    "com10.gguf",
    "lpt3.part",
    "console.gguf",
    "x.",
    "x ",
    "a\tb",
    "3-of-16.rows",
    "model.Q4_K (1).gguf",
)


@pytest.mark.skipif(not hasattr(ntpath, "isreserved"), reason="Python 3.13 knows all names")
@pytest.mark.parametrize("name", NAMES)
def test_names_that_windows_cannot_have_are_those_that_python_lists(name: str) -> None:
    assert bool(portable().refusal_of(name)) == ntpath.isreserved(name)  # type: ignore[attr-defined]


@pytest.mark.skipif(hasattr(ntpath, "isreserved"), reason="ntpath.isreserved knows more")
@pytest.mark.parametrize("name", NAMES)
def test_devices_are_those_that_python_lists(name: str) -> None:
    if ":" not in name and PureWindowsPath(name).is_reserved():
        assert "is a device on Windows" in str(portable().refusal_of(name))
    else:
        assert "is a device on Windows" not in str(portable().refusal_of(name))


@pytest.mark.parametrize(
    ("name", "what"),
    [("a:b", "':' in names"), ("x.", "dot or a space"), ("Aux.gguf", "'Aux' is a device")],
)
def test_refused_name_is_explained(name: str, what: str) -> None:
    assert what in str(portable().refusal_of(name))
    assert Posix().refusal_of(name) is None


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="sizes of 64-bit systems")
def test_structures_of_windows_have_the_documented_layout() -> None:
    # OVERLAPPED: two ULONG_PTR, two DWORD, one HANDLE. MEMORYSTATUSEX: two DWORD, seven DWORDLONG.
    assert ctypes.sizeof(Overlapped) == 8 + 8 + 4 + 4 + 8
    assert (Overlapped.offset.offset, Overlapped.offset_high.offset) == (16, 20)
    assert ctypes.sizeof(MemoryStatus) == 4 + 4 + 7 * 8
    assert MemoryStatus.total_physical.offset == 8


def test_open_files_are_recognized_by_the_rules_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert not is_open(str(path))
    with path.open("rb"):
        assert is_open(str(path))
