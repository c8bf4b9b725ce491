"""Wherever the last step of a run breaks off, the same command makes whole what it left."""

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
    """The power goes."""


class Crash:
    """Breaks off before the k-th step that changes names, or that puts them on the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, k: int | None) -> None:
        self.steps: list[str] = []
        self._k = k
        for owner, name in (
            (Path, "replace"),
            (Path, "unlink"),
            (output, "sync_folder"),
            (os, "fsync"),
        ):
            monkeypatch.setattr(owner, name, self._breaking(name, getattr(owner, name)))

    def _breaking(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*args: Any, **options: Any) -> Any:
            if len(self.steps) == self._k:
                raise CrashError
            self.steps.append(f"{name} {getattr(args[0], 'name', '')}")
            return step(*args, **options)

        return broken


@cache
def plan_of(shards: int, default: str = "Q8_0") -> Plan:
    tensors = [computed_tensor(name, 5, 256) for name in ("a.weight", "b.weight")]
    split = Split(max_tensors=1) if shards > 1 else None
    return make_plan(model(*tensors), recipe(default), split=split)


def convert(folder: Path, shards: int, **options: Any) -> None:
    """Run in one thread that never syncs in between, so that steps come in one order."""
    out = folder / "x.gguf"
    convert_plan(plan_of(shards), out, **({"manifest": "auto"} | options), threads=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def looks_whole(folder: Path, old: dict[str, bytes]) -> bool:
    """Whether there is what a runtime loads and what is not the output of before."""
    first = [n for n in names(folder) if n in ("x.gguf", "x-00001-of-00002.gguf")]
    return any((folder / n).read_bytes() != old.get(n) for n in first)


@pytest.fixture
def steps(tmp_path: Path, request: pytest.FixtureRequest) -> int:
    """How many steps a run has that does not break off."""
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
def test_after_a_crash_at_any_step_the_same_command_finishes(
    tmp_path: Path, steps: int, shards: int, is_there: bool
) -> None:
    """is_there: an output of another recipe, which --force replaces."""
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
        if looks_whole(folder, old):
            found = read_manifest(manifest_path(folder / "x.gguf"))
            for file in found.output.files:
                assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
        if "x.gguf.journal" in names(folder):
            convert(folder, shards, force=is_there)
        elif is_there and contents(folder) == old:
            convert(folder, shards, force=True)
        assert contents(folder) == whole


def test_a_manifest_that_was_not_named_goes_where_none_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "x.gguf.manifest.json.part").write_text("{}")
    convert(tmp_path, 1, manifest=None)
    assert names(tmp_path) == ["x.gguf"]


def test_a_manifest_of_before_goes_with_the_output_it_tells_of(tmp_path: Path) -> None:
    convert(tmp_path, 1)
    convert(tmp_path, 1, manifest=None, force=True)
    assert names(tmp_path) == ["x.gguf"]
