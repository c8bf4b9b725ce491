"""What is there is kept, and what cannot be written is told before any work, with the reason."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import (
    model,
    names,
    recipe,
    small_plan,
    stored_tensor,
    weights,
)

from dynquant.conversion import disk
from dynquant.conversion.journal import Journal
from dynquant.conversion.layout import lay_out
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError, DynquantError
from dynquant.plan.make import make_plan


def refused(out: Path, **options: bool) -> tuple[str, ...]:
    with pytest.raises(ConvertError) as e:
        convert_plan(small_plan(), out, threads=1, **options)
    return e.value.messages


def test_an_output_that_exists_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    (message,) = refused(tmp_path / "x.gguf")
    assert "--force" in message
    assert (tmp_path / "x.gguf").read_text() == "mine"
    assert names(tmp_path) == ["x.gguf"]


def test_a_missing_output_folder_is_refused(tmp_path: Path) -> None:
    (message,) = refused(tmp_path / "none" / "x.gguf")
    assert str(tmp_path / "none") in message


def test_a_folder_as_output_is_refused(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, force=True)
    assert "is a folder" in message


def test_a_device_as_output_is_refused() -> None:
    (message,) = refused(Path(os.devnull), force=True)
    assert "not a regular file" in message


def test_an_output_folder_that_is_not_writable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The system's answer about a folder without permissions, which root does not get.
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    (message,) = refused(tmp_path / "x.gguf")
    assert "not writable" in message
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_a_folder_that_turns_out_not_writable_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    (message,) = refused(tmp_path / "x.gguf")
    assert message == f"{tmp_path / 'x.gguf.journal'}: cannot be created: Read-only file system"


@pytest.mark.parametrize("name", ["w", "link"])
def test_the_models_own_file_is_not_overwritten_even_with_force(tmp_path: Path, name: str) -> None:
    tensor = stored_tensor(tmp_path / "w", "a.weight", weights(5, 96))
    (tmp_path / "link").hardlink_to(tmp_path / "w")
    plan = make_plan(model(tensor), recipe())
    with pytest.raises(ConvertError, match="of the model itself"):
        convert_plan(plan, tmp_path / name, threads=1, force=True)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_is_an_error_and_no_empty_output(tmp_path: Path, threads: int) -> None:
    with pytest.raises(ConvertError, match="at least 1"):
        convert_plan(small_plan(), tmp_path / "x.gguf", threads=threads)
    assert names(tmp_path) == []


def test_an_isa_that_this_cpu_lacks_is_told_before_there_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNQUANT_ISA", "v9")
    with pytest.raises(DynquantError, match="DYNQUANT_ISA='v9'"):
        convert_plan(small_plan(), tmp_path / "x.gguf")
    assert names(tmp_path) == []


def test_two_runs_for_one_output_do_not_mix(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.gguf")
    (message,) = refused(tmp_path / "x.gguf")
    assert "another dynquant" in message
    journal.close()
    convert_plan(small_plan(), tmp_path / "x.gguf", threads=1)


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_is_told_with_the_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", no_space)
    (message,) = refused(tmp_path / "x.gguf")
    assert f"needs {lay_out(small_plan()).n_bytes:,} bytes" in message
    assert names(tmp_path) == []


def test_a_disk_without_room_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "fallocate", no_space)
    (message,) = refused(tmp_path / "x.gguf")
    assert "free some space" in message
    assert names(tmp_path) == []


def test_where_blocks_cannot_be_reserved_none_is_written_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(fd: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(disk, "fallocate", unsupported)
    path = tmp_path / "x"
    with path.open("wb") as file:
        disk.reserve(file.fileno(), 1 << 40)
    assert path.stat().st_size == 1 << 40
    assert path.stat().st_blocks == 0


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="only Linux reserves blocks")
def test_blocks_are_reserved_where_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        disk.reserve(file.fileno(), 1 << 20)
    assert path.stat().st_size == 1 << 20
    if path.stat().st_blocks == 0:
        pytest.skip("the file system of the tests reserves nothing")
    assert path.stat().st_blocks * 512 >= 1 << 20


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_really_full_disk_is_told_and_left_as_it_was(tiny_disk: Path) -> None:
    (message,) = refused(tiny_disk / "x.gguf")
    assert "needs" in message
    assert "65,536 free" in message
    assert names(tiny_disk) == []
