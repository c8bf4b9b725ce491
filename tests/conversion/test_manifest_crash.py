"""If a run crashes at any step of its end, the same command completes the output."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from handmade import computed_tensor, model, names, recipe

from dynquant.conversion import output
from dynquant.conversion.manifest import manifest_path, read_manifest
from dynquant.conversion.write import convert_plan
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.shards import Split


class CrashError(BaseException):
    """A simulated power loss."""


class Crash:
    """Crashes before the k-th step that changes names or syncs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, k: int | None) -> None:
        self.steps: list[str] = []
        self._k = k
        for owner, name in (
            (Path, "replace"),
            (Path, "unlink"),
            (output, "sync_folder"),
            (os, "fsync"),
        ):
            monkeypatch.setattr(owner, name, self._crashing(name, getattr(owner, name)))

    def _crashing(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if len(self.steps) == self._k:
                raise CrashError
            self.steps.append(f"{name} {getattr(args[0], 'name', '')}")
            return step(*args, **options)

        return wrapped


@cache
def plan_of(shards: int, default: str = "Q8_0") -> Plan:
    tensors = [computed_tensor(name, 5, 256) for name in ("a.weight", "b.weight")]
    split = Split(max_tensors=1) if shards > 1 else None
    return make_plan(model(*tensors), recipe(default), split=split)


def convert(folder: Path, shards: int, **options: Any) -> None:
    """Run in one thread, which does not sync between jobs, so that the order of steps is fixed."""
    out = folder / "x.gguf"
    convert_plan(plan_of(shards), out, **({"manifest": "auto"} | options), threads=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def looks_complete(folder: Path, old: dict[str, bytes]) -> bool:
    """Return whether a file that a runtime loads is not that of the old output."""
    first = [n for n in names(folder) if n in ("x.gguf", "x-00001-of-00002.gguf")]
    return any((folder / n).read_bytes() != old.get(n) for n in first)


@pytest.fixture
def steps(tmp_path: Path, request: pytest.FixtureRequest) -> int:
    """Return the number of steps of an undisturbed run."""
    with pytest.MonkeyPatch.context() as patch:
        crash = Crash(patch, None)
        (tmp_path / "counted").mkdir()
        convert(tmp_path / "counted", request.param)
    assert sum(step.startswith("replace") for step in crash.steps) == request.param + 1
    return len(crash.steps)


CASES = [(1, False), (1, True), (2, False), (2, True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "shards", "is_there"), [(n, n, is_there) for n, is_there in CASES], indirect=["steps"]
)
def test_same_command_finishes_after_a_crash_at_any_step(
    tmp_path: Path, steps: int, shards: int, is_there: bool
) -> None:
    """is_there: whether --force replaces the output of another recipe."""
    whole = contents(tmp_path / "counted")
    for k in range(steps + 1):
        folder = tmp_path / str(k)
        folder.mkdir()
        old: dict[str, bytes] = {}
        if is_there:
            convert_plan(plan_of(shards, "F16"), folder / "x.gguf", threads=1, manifest="auto")
            old = contents(folder)
        with pytest.MonkeyPatch.context() as patch:
            Crash(patch, k)
            try:
                convert(folder, shards, force=True)
                assert k == steps or is_there
            except CrashError:
                pass
        if looks_complete(folder, old):
            found = read_manifest(manifest_path(folder / "x.gguf"))
            for file in found.output.files:
                assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
        if "x.gguf.journal" in names(folder):
            convert(folder, shards, force=is_there)
        elif is_there and contents(folder) == old:
            convert(folder, shards, force=True)
        assert contents(folder) == whole


def test_unfinished_manifest_is_deleted_by_a_run_without_manifest(tmp_path: Path) -> None:
    (tmp_path / "x.gguf.manifest.json.part").write_text("{}")
    convert(tmp_path, 1, manifest=None)
    assert names(tmp_path) == ["x.gguf"]


def test_old_manifest_is_deleted_with_its_output(tmp_path: Path) -> None:
    convert(tmp_path, 1)
    convert(tmp_path, 1, manifest=None, force=True)
    assert names(tmp_path) == ["x.gguf"]
