"""A GGUF that is split and merged again is the same, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ggufs import SCALARS, add, keys_of, tensors_of, write
from places import TINY_BOOKS
from typer.testing import CliRunner

import dynquant
from dynquant.checkpoint.gguf_shards import open_gguf
from dynquant.cli import app
from dynquant.errors import CheckpointError, ConvertError

TYPES = ("F32", "Q8_0", "F16", "BF16", "Q4_0")


def run(*args: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A GGUF with keys and tensors of many types, including integers."""

    def fill(writer: gguf.GGUFWriter) -> None:
        for i, (kind, value) in enumerate(SCALARS.items()):
            writer.add_key_value(f"x.{i}", value, kind)
        writer.add_array("x.list", ["a", "", "b"])
        rng = np.random.default_rng(0)
        for i, name in enumerate(TYPES * 2):
            x = rng.standard_normal((3 + i, 64)).astype(np.float32)
            add(writer, f"blk.{i}.attn_q.weight", x, name)
        add(writer, "table.weight", np.arange(10, dtype=np.int32))

    return write(tmp_path / "whole.gguf", fill)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "count"),
    [(("--max-tensors", 4), 3), (("--max-tensors", 99), 1), (("--max-size", "2000"), 5)],
)
def test_shards_contain_every_tensor_and_the_first_every_key(
    whole: Path, tmp_path: Path, how: tuple[str, Any], count: int
) -> None:
    assert run("split", whole, "-o", tmp_path / "s.gguf", *how, "-q").exit_code == 0
    shards = sorted(tmp_path.glob("s*.gguf"))
    assert len(shards) == count
    found = {name: t for path in shards for name, t in tensors_of(path).items()}
    assert found == tensors_of(whole)
    theirs = keys_of(whole)
    if count == 1:
        assert keys_of(shards[0]) == theirs
        return
    assert [p.name for p in shards] == [f"s-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    for number, path in enumerate(shards):
        keys = dict(keys_of(path))
        said = [keys.pop(f"split.{key}")[1] for key in ("no", "count", "tensors.count")]
        assert said == [number, count, len(found)]
        assert keys == (theirs if number == 0 else {})
    assert len(open_gguf(shards[-1]).files) == count


@pytest.mark.slow
def test_merge_gives_the_original_file(whole: Path, tmp_path: Path) -> None:
    # written once by dynquant, so that the header has its layout
    run("merge", whole, "-o", tmp_path / "a.gguf", "-q")
    run("split", tmp_path / "a.gguf", "-o", tmp_path / "s.gguf", "--max-tensors", 3, "-q")
    done = run("merge", tmp_path / "s-00002-of-00004.gguf", "-o", tmp_path / "b.gguf", "-q")
    assert done.exit_code == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert tensors_of(tmp_path / "b.gguf") == tensors_of(whole)


@pytest.mark.slow
def test_missing_shard_is_named_and_nothing_is_written(whole: Path, tmp_path: Path) -> None:
    run("split", whole, "-o", tmp_path / "s.gguf", "--max-tensors", 4, "-q")
    (tmp_path / "s-00002-of-00003.gguf").unlink()
    error = run("merge", tmp_path / "s-00001-of-00003.gguf", "-o", tmp_path / "b.gguf").exception
    assert isinstance(error, CheckpointError)
    assert "s-00002-of-00003.gguf" in str(error)
    assert not list(tmp_path.glob("b*"))


@pytest.mark.slow
def test_existing_shard_is_kept_without_force(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "s-00002-of-00003.gguf").write_text("mine")
    how = ("split", whole, "-o", tmp_path / "s.gguf", "--max-tensors", 4, "-q")
    error = run(*how).exception
    assert isinstance(error, ConvertError)
    assert str(error).startswith(
        f"{tmp_path / 's-00002-of-00003.gguf'}: exists; replace it with --force"
    )
    assert (tmp_path / "s-00002-of-00003.gguf").read_text() == "mine"
    assert run(*how, "--force").exit_code == 0
    assert len(open_gguf(tmp_path / "s-00002-of-00003.gguf").files) == 3


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--max-size", "big"), ("--max-tensors", 0)])
def test_split_requires_a_limit(whole: Path, tmp_path: Path, how: tuple[str, Any]) -> None:
    assert run("split", whole, "-o", tmp_path / "s.gguf", *how).exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_the_manifest_of_the_source_is_kept(tmp_path: Path, force: tuple[str, ...]) -> None:
    shards = dynquant.convert(
        TINY_BOOKS, tmp_path / "s.gguf", recipe="q8_0", split=dynquant.Split(max_tensors=20)
    )
    assert shards.manifest
    before = shards.manifest.read_bytes()
    done = run("merge", shards.path, "-o", tmp_path / "s.gguf", *force)
    assert (done.exit_code, shards.manifest.read_bytes()) == (1, before)
    assert "is the manifest of the model" in str(done.exception)
