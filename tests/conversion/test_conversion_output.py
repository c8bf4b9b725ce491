"""Existing files are kept, and an output that cannot be written is reported before any work."""

from __future__ import annotations

import errno
import os
import shutil
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
from places import TINY_BOOKS

import dynquant
from dynquant.conversion import disk
from dynquant.conversion.journal import Journal, journal_path
from dynquant.conversion.layout import lay_out
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError, DynquantError
from dynquant.plan.make import make_plan
from dynquant.systems import system


def refused(out: Path, **options: bool) -> tuple[str, ...]:
    with pytest.raises(ConvertError) as e:
        convert_plan(small_plan(), out, threads=1, **options)
    return e.value.messages


def test_existing_output_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    (message,) = refused(tmp_path / "x.gguf")
    assert "--force" in message
    assert (tmp_path / "x.gguf").read_text() == "mine"
    assert names(tmp_path) == ["x.gguf"]


def test_missing_output_folder_is_refused(tmp_path: Path) -> None:
    (message,) = refused(tmp_path / "none" / "x.gguf")
    assert str(tmp_path / "none") in message


def test_a_folder_as_output_is_refused(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, force=True)
    assert "is a folder" in message


def test_a_device_as_output_is_refused() -> None:
    (message,) = refused(Path(os.devnull), force=True)
    assert "not a regular file" in message


def test_output_folder_without_write_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The answer of the system for a folder without permissions; root would get another one.
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    (message,) = refused(tmp_path / "x.gguf")
    assert "not writable" in message
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_failure_to_create_the_journal_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    (message,) = refused(tmp_path / "x.gguf")
    assert message == f"{tmp_path / 'x.gguf.journal'}: cannot be created: Read-only file system"


@pytest.mark.parametrize("name", ["w", "link"])
def test_source_file_is_not_overwritten_even_with_force(tmp_path: Path, name: str) -> None:
    tensor = stored_tensor(tmp_path / "w", "a.weight", weights(5, 96))
    (tmp_path / "link").hardlink_to(tmp_path / "w")
    plan = make_plan(model(tensor), recipe())
    with pytest.raises(ConvertError, match="of the model itself"):
        convert_plan(plan, tmp_path / name, threads=1, force=True)


@pytest.mark.parametrize("threads", [0, -1])
def test_zero_threads_are_an_error_and_no_file_is_created(tmp_path: Path, threads: int) -> None:
    with pytest.raises(ConvertError, match="at least 1"):
        convert_plan(small_plan(), tmp_path / "x.gguf", threads=threads)
    assert names(tmp_path) == []


def test_unsupported_isa_is_reported_before_a_file_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNQUANT_ISA", "v9")
    with pytest.raises(DynquantError, match="DYNQUANT_ISA='v9'"):
        convert_plan(small_plan(), tmp_path / "x.gguf")
    assert names(tmp_path) == []


def test_second_run_for_the_same_output_is_refused(tmp_path: Path) -> None:
    journal = Journal(journal_path(tmp_path / "x.gguf"))
    (message,) = refused(tmp_path / "x.gguf")
    assert "another dynquant" in message
    journal.close()
    convert_plan(small_plan(), tmp_path / "x.gguf", threads=1)


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full_during_a_run_is_reported_with_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system(), "write_at", no_space)
    (message,) = refused(tmp_path / "x.gguf")
    assert f"needs {lay_out(small_plan()).n_bytes:,} bytes" in message
    assert names(tmp_path) == []


def test_disk_without_space_is_reported_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "fallocate", no_space)
    (message,) = refused(tmp_path / "x.gguf")
    assert "free some space" in message
    assert names(tmp_path) == []


def test_file_is_sparse_if_space_cannot_be_reserved(
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
def test_space_is_reserved_if_supported(tmp_path: Path) -> None:
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


def test_small_real_disk_is_reported_and_left_unchanged(tiny_disk: Path) -> None:
    (message,) = refused(tiny_disk / "x.gguf")
    assert "needs" in message
    assert "65,536 free" in message
    assert names(tiny_disk) == []


@pytest.mark.parametrize("name", [".", "", "..", "/"])
def test_a_path_without_a_name_is_refused(name: str) -> None:
    (message,) = refused(Path(name), force=True)
    assert "is not the name of a file" in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_no_file_of_the_model_is_replaced(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(TINY_BOOKS, tmp_path / "m")
    before = (folder / name).read_bytes()
    with pytest.raises(ConvertError, match="is a file of the model itself"):
        dynquant.convert(folder, folder / name, recipe="q8_0", force=True)
    assert (folder / name).read_bytes() == before


def test_the_recipe_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("default: Q8_0\n")
    with pytest.raises(ConvertError, match="is the recipe"):
        dynquant.convert(TINY_BOOKS, tmp_path / "r.yaml", recipe=tmp_path / "r.yaml", force=True)


@pytest.mark.slow
def test_an_output_in_the_folder_of_its_model_can_be_replaced(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY_BOOKS, tmp_path / "m")
    for force in (False, True):
        dynquant.convert(folder, folder / "x.gguf", recipe="q8_0", force=force)


@pytest.mark.slow
def test_an_output_of_the_same_name_in_other_files_is_kept(tmp_path: Path) -> None:
    """Both would have one manifest."""
    out = tmp_path / "x.gguf"
    dynquant.convert(TINY_BOOKS, out, recipe="q8_0")
    split = dynquant.Split(max_tensors=20)
    with pytest.raises(ConvertError, match=r"x\.gguf: is an output of the same name") as e:
        dynquant.convert(TINY_BOOKS, out, recipe="q4_0", split=split, force=True)
    assert len(e.value.messages) == 1
    assert dynquant.verify(out).is_sound
    out.unlink()
    dynquant.convert(TINY_BOOKS, out, recipe="q4_0", split=split, force=True)
    with pytest.raises(ConvertError, match=r"x-00001-of-00003\.gguf: is an output of the same"):
        dynquant.convert(TINY_BOOKS, out, recipe="q4_0", force=True)
