"""Recipes that a command reads are never replaced, also not those that a recipe extends."""

from __future__ import annotations

from pathlib import Path

import pytest
from inprocess import run
from places import TINY_BOOKS

BASE = "default: Q8_0\n"
OWN = "extends: base.yaml\nrules: [{role: attn_v, type: F16}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "own.yaml").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base.yaml", "own.yaml"])
@pytest.mark.parametrize(
    "command",
    [
        ["convert", str(TINY_BOOKS), "-r", "own.yaml", "--force", "-o"],
        ["convert", str(TINY_BOOKS), "-r", "own.yaml", "-o", "x.gguf", "--summary"],
        ["plan", str(TINY_BOOKS), "-r", "own.yaml", "--force", "--save"],
        ["recipe", "resolve", "own.yaml", "--force", "-o"],
        ["recipe", "export", "own.yaml", str(TINY_BOOKS), "--force", "-o"],
    ],
    ids=lambda words: " ".join(w for w in words if "/" not in w),
)
def test_a_recipe_that_is_read_is_not_replaced(folder: Path, command: list[str], name: str) -> None:
    result = run(*command, name)
    assert result.code == 1
    assert name in result.err
    assert (folder / "base.yaml").read_text() == BASE
    assert (folder / "own.yaml").read_text() == OWN
