"""`dynquant imatrix MODEL` with models and texts that cannot be used: one error, and no file.

Needs torch: `pytest -m torch` where the extra `calibrate` is installed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from agreement import load_reference
from inprocess import run
from places import TINY_BOOKS

import dynquant
from dynquant.checkpoint.safetensors import open_checkpoint

pytest.importorskip("torch", reason="needs the extra calibrate")
pytest.importorskip("transformers", reason="needs the extra calibrate")

pytestmark = [pytest.mark.torch, pytest.mark.slow]

INSTEAD = "run llama-imatrix on it, and give its file as --imatrix"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("The river was dark, and the mill was closed. " * 20)


def refusals(model: object, *options: object) -> list[str]:
    """Return the lines of an error, without `error: `; nothing may be written."""
    before = sorted(path.name for path in Path().iterdir())
    done = run("imatrix", model, "--text", "t.txt", "-c", 16, "-o", "o.gguf", "-q", *options)
    lines = done.err.splitlines()
    assert (done.code, done.out) == (1, "")
    assert all(line.startswith("error: ") for line in lines), done.err
    assert sorted(path.name for path in Path().iterdir()) == before
    return [line.removeprefix("error: ") for line in lines]


def copied(family: str) -> Path:
    shutil.copytree(load_reference(family).folder, "model")
    return Path("model")


def gguf() -> bytes:
    dynquant.convert(TINY_BOOKS, "whole.gguf", recipe="f16", threads=1)
    return Path("whole.gguf").read_bytes()


# ---- models ----


@pytest.mark.parametrize("left", [10, 1000, -1])
def test_a_truncated_gguf_is_one_error(left: int) -> None:
    Path("cut.gguf").write_bytes(gguf()[:left])
    (line,) = refusals("cut.gguf")
    assert line.startswith("cut.gguf: byte ")


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_truncated_shard_is_named(left: int) -> None:
    model = copied("qwen3")
    shard = model / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:left])
    (line,) = refusals(model)
    assert line.startswith(f"{shard}: ")


def test_a_missing_shard_is_named() -> None:
    model = copied("qwen3")
    (model / "model-00002-of-00003.safetensors").unlink()
    (line,) = refusals(model)
    assert "model-00002-of-00003.safetensors" in line


@pytest.mark.parametrize(
    ("family", "named"),
    [("kimi-k3", "kimi_k3"), ("baichuan", "baichuan"), ("bert", "BertLMHeadModel")],
)
def test_a_family_that_transformers_cannot_run_is_named_with_the_way_on(
    family: str, named: str
) -> None:
    (line,) = refusals(load_reference(family).folder)
    assert named in line
    assert line.endswith(INSTEAD)


def test_an_unknown_family_is_named() -> None:
    model = copied("qwen3")
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["NobodysForCausalLM"], "model_type": "nobodys"}
    (model / "config.json").write_text(json.dumps(config))
    (line,) = refusals(model)
    assert "NobodysForCausalLM" in line


def test_a_gguf_whose_settings_transformers_does_not_read_is_refused() -> None:
    # Transformers ignores the size of a head that is not hidden size by heads, as in Qwen3.
    dynquant.convert(load_reference("qwen3").folder, "q.gguf", recipe="f32", threads=1)
    (line,) = refusals("q.gguf")
    assert line.startswith("q.gguf: transformers does not read all settings of a GGUF of qwen3, ")


def test_a_gguf_whose_settings_transformers_refuses_is_named() -> None:
    dynquant.convert(load_reference("mistral").folder, "m.gguf", recipe="f32", threads=1)
    (line,) = refusals("m.gguf")
    assert line.startswith("m.gguf: transformers cannot read its settings: ")
    assert "The hidden size (32) is not a multiple of the number of attention heads (3)." in line
    assert line.endswith(INSTEAD)


@pytest.mark.parametrize("number", [0x7FC0, 0x7F80])
def test_a_weight_that_is_no_number_is_reported_with_its_layer(number: int) -> None:
    shutil.copytree(TINY_BOOKS, "model")
    stored = open_checkpoint(TINY_BOOKS).tensors["model.layers.1.mlp.up_proj.weight"]
    assert stored.dtype == "BF16"
    with Path("model", "model.safetensors").open("r+b") as file:
        file.seek(stored.offset)
        file.write(number.to_bytes(2, "little") * (stored.n_bytes // 2))
    (line,) = refusals("model")
    assert line.startswith("layer 1: inputs of model.layers.1.mlp.down_proj are not finite; ")


# ---- texts ----


def test_a_text_shorter_than_a_window_is_named() -> None:
    Path("short.txt").write_text("The river.")
    (line,) = refusals(TINY_BOOKS, "--text", "short.txt")
    assert line.startswith("short.txt: has ")
    assert line.endswith(
        " tokens, too few for a window of 16; use a longer text or a smaller --context"
    )


def test_chats_shorter_than_a_window_are_named() -> None:
    Path("short.jsonl").write_text('[{"role": "user", "content": "Why?"}]')
    (line,) = refusals(load_reference("qwen3").folder, "--chat", "short.jsonl")
    assert line.startswith("short.jsonl: has ")


@pytest.mark.parametrize("chunks", [1, 100_000])
def test_a_number_of_windows_that_the_texts_do_not_have_is_refused(chunks: int) -> None:
    Path("u.txt").write_text("The miller had a daughter. " * 20)
    (line,) = refusals(TINY_BOOKS, "--text", "u.txt", "--chunks", chunks)
    assert line.startswith(f"--chunks {chunks}: the texts have ")
    assert "windows of 16 tokens, and each is used; give 2 to " in line
