"""`dynquant imatrix MODEL` takes the models that other commands take.

Needs torch: `pytest -m torch` where the extra `calibrate` is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from agreement import load_reference
from inprocess import run
from places import TINY_BOOKS
from tiny_hub import COMMIT, Hub, Serving

import dynquant
from dynquant.checkpoint.gguf import read_gguf
from dynquant.importance.imatrix import read_imatrix

pytest.importorskip("torch", reason="needs the extra calibrate")
pytest.importorskip("transformers", reason="needs the extra calibrate")

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("The river was dark, and the mill was closed. " * 20)


OPTIONS = ("--text", "t.txt", "-c", "16", "--chunks", "2")


def name_in(imatrix: str) -> object:
    return read_gguf(Path(imatrix)).keys["dynquant.imatrix.model"].value


def test_any_shard_of_a_gguf_gives_the_imatrix_of_the_whole() -> None:
    # Of tiny-books, transformers does not read the size of a head.
    folder = load_reference("llama-2").folder
    dynquant.convert(folder, "x.gguf", recipe="f32", threads=1)
    assert run("split", "x.gguf", "-o", "y.gguf", "--max-tensors", 8, "-q").code == 0
    assert run("imatrix", "x.gguf", *OPTIONS).code == 0
    assert run("imatrix", "y-00002-of-00003.gguf", *OPTIONS).code == 0
    whole, shards = (read_gguf(Path(f"{name}.imatrix.gguf")) for name in "xy")
    assert [t.name for t in whole.tensors] == [t.name for t in shards.tensors] != []
    contents = [f.path.read_bytes()[f.data_offset :] for f in (whole, shards)]
    assert contents[0] == contents[1]


def test_a_folder_is_named_even_if_it_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tiny").symlink_to(TINY_BOOKS)
    out, text = Path("o.gguf").absolute(), Path("t.txt").absolute()
    monkeypatch.chdir("tiny")
    done = run("imatrix", ".", "--text", text, "-c", 16, "--chunks", 2, "-o", out)
    assert done.code == 0, done.err
    assert name_in(str(out)) == TINY_BOOKS.name


def test_a_model_of_the_hub_is_fetched_and_named_with_its_commit(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")
    with Serving(Hub({"tiny/llama": load_reference("llama-2").folder})) as served:
        # The library reads its environment when it is imported.
        environment = os.environ | served.environment(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "dynquant.cli", "imatrix", "hf://tiny/llama", *OPTIONS],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert name_in("llama.imatrix.gguf") == f"hf://tiny/llama@{COMMIT}"


@pytest.mark.parametrize("family", ["llama-2", "qwen2", "falcon", "bloom", "mamba", "lfm2"])
def test_a_gguf_gives_the_imatrix_of_its_checkpoint(family: str) -> None:
    folder = load_reference(family).folder
    dynquant.convert(folder, "x.gguf", recipe="f32", threads=1)
    for model, out in ((folder, "a.gguf"), ("x.gguf", "b.gguf")):
        assert run("imatrix", model, *OPTIONS, "-o", out).code == 0
    one, two = (read_imatrix(Path(name)).entries for name in ("a.gguf", "b.gguf"))
    assert one.keys() == two.keys() != set()
    for name, entry in one.items():
        a, b = (e.sums(0, e.n_values) for e in (entry, two[name]))
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * a.max())


@pytest.mark.parametrize("family", ["gemma3", "starcoder2", "llama-3.1", "qwen3moe", "falcon-40b"])
def test_a_gguf_of_which_transformers_loses_settings_is_refused(family: str) -> None:
    dynquant.convert(load_reference(family).folder, "x.gguf", recipe="f16", threads=1)
    done = run("imatrix", "x.gguf", *OPTIONS)
    assert done.code == 1
    assert "so that it computes another model; give the checkpoint, or run" in done.err
