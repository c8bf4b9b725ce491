"""What belongs together: files and a reference of a model, their names, hashes and texts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from agreement import load_reference

import dynquant
from dynquant.arrays import I32
from dynquant.errors import EvalError
from dynquant.evaluate import base
from dynquant.evaluate.answers import PromptSet
from dynquant.evaluate.files import Gguf, hashed
from dynquant.evaluate.fit import Expected, check_fit, windows_for
from dynquant.evaluate.given import Given, check_given
from dynquant.evaluate.lossless import reference_gguf
from dynquant.evaluate.settings import Settings
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import Described
from dynquant.evaluate.vocabulary import Vocabulary
from dynquant.plan.shards import Split
from dynquant.texts import Text

TEXT = Text("t.txt", b"text")
TOKENS = np.arange(16 * 30, dtype=np.int32) % 50
SETTINGS = Settings(cache=Path("cache"), texts=(Path("t.txt"),), context=16)


def vocabulary_of(path: Path, tokens: I32 = TOKENS, **changes: Any) -> Vocabulary:
    facts = Described(
        architecture="qwen3",
        n_tokens=50,
        vocabulary_sha256="0" * 64,
        bos=None,
        has_chat_template=False,
        refusal=None,
        has_gpu=False,
        engine={"wheel": "w", "version": "v", "commit": "c", "system": "s"},
    ).model_copy(update=changes)
    return Vocabulary(path, facts, (tokens,), PromptSet((), (), chat=False), ())


def given_for(reference: Path, *files: Path) -> Given:
    named = tuple((path, path.name) for path in files)
    return Given(named, str(reference), reference, None, (TEXT,), (Path("t.txt"),))


def refusal(file: Vocabulary) -> str:
    own = vocabulary_of(Path("r.gguf"))
    given = given_for(Path("r.gguf"), file.path)
    windows = windows_for(own, given, SETTINGS)
    expected = Expected("r.gguf", 50, "0" * 64, windows.sha256)
    with pytest.raises(EvalError) as caught:
        check_fit([file, vocabulary_of(Path("good.gguf"))], expected, given, SETTINGS)
    (line,) = caught.value.messages
    return line


@pytest.mark.parametrize("what", ["other ids", "another BOS"])
def test_other_tokens_of_a_text_are_named(what: str) -> None:
    file = (
        vocabulary_of(Path("x.gguf"), TOKENS[::-1].copy())
        if what == "other ids"
        else vocabulary_of(Path("x.gguf"), bos=7)
    )
    assert refusal(file) == (
        "x.gguf: splits the texts into other tokens than the reference r.gguf; compare the"
        " tokenizer keys of both with `dynquant inspect`"
    )


def test_another_vocabulary_is_named() -> None:
    assert refusal(vocabulary_of(Path("x.gguf"), n_tokens=51)).startswith("x.gguf: has 51 tokens")


def test_other_texts_of_tokens_are_named() -> None:
    other = vocabulary_of(Path("x.gguf"), vocabulary_sha256="1" * 64)
    assert refusal(other).startswith("x.gguf: has other tokens than the reference r.gguf")


# ---- files ----


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with f32.gguf and q4_0.gguf of a tiny model."""
    folder = tmp_path_factory.mktemp("made")
    source = load_reference("qwen3").folder
    for name in ("f32", "q4_0"):
        dynquant.convert(source, folder / f"{name}.gguf", recipe=name, threads=1)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = Path(shutil.copytree(made, tmp_path / "made"))
    monkeypatch.chdir(copied)
    Path("t.txt").write_text("text")
    return copied


def no_progress(*_: Any) -> None:
    return


def test_hashes_sizes_and_bits_are_those_of_the_file(folder: Path) -> None:
    found = hashed(Path("q4_0.gguf"), no_progress)
    content = Path("q4_0.gguf").read_bytes()
    (file,) = found.files
    assert (file.name, file.bytes) == ("q4_0.gguf", len(content))
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    tensors = gguf.GGUFReader("q4_0.gguf").tensors
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    assert found.bits_per_weight == pytest.approx(bits)


def test_progress_of_hashing_ends_with_all_bytes(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    hashed(Path("f32.gguf"), lambda done, total: seen.append((done, total)))
    size = Path("f32.gguf").stat().st_size
    assert seen[-1] == (size, size)


def names(*files: str) -> list[str]:
    given = check_given([Path(f) for f in files], "f32.gguf", [Path("t.txt")])
    return [name for _, name in given.files]


def test_the_same_file_twice_is_one(folder: Path) -> None:
    assert names("q4_0.gguf", "./q4_0.gguf", "q4_0.gguf") == ["q4_0.gguf"]


def test_files_of_the_same_name_have_their_folders(folder: Path) -> None:
    shutil.copytree(folder, folder / "b")
    assert names("q4_0.gguf", "b/q4_0.gguf", "f32.gguf") == [
        "q4_0.gguf",
        "b/q4_0.gguf",
        "f32.gguf",
    ]


def test_any_shard_is_the_whole_model(folder: Path) -> None:
    source = load_reference("qwen3").folder
    dynquant.convert(source, "s.gguf", recipe="f32", split=Split(max_tensors=12), threads=1)
    shards = sorted(path.name for path in Path().glob("s-*.gguf"))
    assert len(shards) > 1
    assert names(*shards) == names(shards[-1]) == ["s.gguf"]
    found = hashed(Path(shards[-1]), no_progress)
    assert [file.name for file in found.files] == shards
    assert found.bits_per_weight == hashed(Path("f32.gguf"), no_progress).bits_per_weight


# ---- a new reference ----


def opened(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    reference: str = "f32",
    prompts: PromptSet | None = None,
    settings: Settings = SETTINGS,
    **changes: Any,
) -> base.Base:
    """Begin a reference in the cache, with a vocabulary in place of llama.cpp's."""
    vocabulary = vocabulary_of(folder / "x.gguf", **changes)
    if prompts:
        vocabulary = replace(vocabulary, prompts=prompts)
    monkeypatch.setattr(base, "read_vocabulary", lambda *_, **__: vocabulary)
    path = folder / f"{reference}.gguf"
    return base.open_base(given_for(path, path), settings, no_progress, no_progress)


def test_a_reference_records_what_it_is_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = opened(folder, monkeypatch).header
    assert header.model.files == list(hashed(Path("f32.gguf"), no_progress).files)
    assert [(t.name, t.sha256, t.windows) for t in header.texts] == [
        ("t.txt", hashlib.sha256(b"text").hexdigest(), 30)
    ]
    assert header.tokens_sha256 == hashlib.sha256(TOKENS.astype("<i4").tobytes()).hexdigest()
    assert (header.context, header.tail) == (16, SETTINGS.tail)


def test_a_changed_model_is_another_reference(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = opened(folder, monkeypatch).path
    assert opened(folder, monkeypatch).path == before
    with Path("f32.gguf").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert opened(folder, monkeypatch).path != before


def test_a_complete_name_is_not_needed_for_a_file_of_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "é" * 115
    Path("f32.gguf").rename(f"{name}.gguf")
    found = opened(folder, monkeypatch, name)
    assert found.path.is_file()
    assert found.header.model.name == f"{name}.gguf"
    Store.open(found.path).__exit__(None, None, None)


def test_an_exact_reference_has_no_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(folder, monkeypatch).warnings == ()


def test_a_coarse_reference_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = opened(folder, monkeypatch, "q4_0").warnings
    assert "has tensors of Q4_0" in warning


def test_windows_beyond_the_models_context_are_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gguf, "context", 12)
    (warning,) = opened(folder, monkeypatch).warnings
    assert warning == "windows of 16 tokens are longer than the model's context of 12"


def test_answers_beyond_the_models_context_are_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gguf, "context", 100)
    prompts = PromptSet(("a", "b"), ((1,), (1, 2, 3)), chat=False)
    (warning,) = opened(folder, monkeypatch, prompts=prompts).warnings
    assert warning == (
        f"a prompt and its answer may have {3 + SETTINGS.n_predict} tokens, more than the model's"
        " context of 100"
    )


def test_the_context_of_a_model_is_its_key(folder: Path) -> None:
    (key,) = (
        field
        for name, field in gguf.GGUFReader("f32.gguf").fields.items()
        if name.endswith(".context_length")
    )
    assert hashed(Path("f32.gguf"), no_progress).context == key.contents() > 0


def test_layers_on_a_gpu_are_refused_where_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, gpu_layers=3)
    with pytest.raises(EvalError, match=r"^--gpu-layers 3: the installed xllamacpp computes on"):
        opened(folder, monkeypatch, settings=settings)
    assert opened(folder, monkeypatch, settings=settings, has_gpu=True)


# ---- a checkpoint ----


def test_a_checkpoint_is_converted_once(tmp_path: Path) -> None:
    source = Path(shutil.copytree(load_reference("qwen3").folder, tmp_path / "model"))
    converted: list[object] = []

    def convert() -> Path:
        return reference_gguf(str(source), tmp_path / "cache", threads=1, progress=converted.append)

    path = convert()
    n = len(converted)
    assert n
    assert convert() == path
    assert len(converted) == n


def with_other_weights(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-2:] = b"\x80\x3f"
    path.write_bytes(content)


def with_another_setting(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_theta": 5000.0, "rope_parameters": None}))


@pytest.mark.parametrize("change", [with_other_weights, with_another_setting])
def test_a_changed_checkpoint_is_converted_again(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    source = Path(shutil.copytree(load_reference("qwen3").folder, tmp_path / "model"))
    before = reference_gguf(str(source), tmp_path / "cache", threads=1, progress=None)
    change(source)
    after = reference_gguf(str(source), tmp_path / "cache", threads=1, progress=None)
    assert after.read_bytes() != before.read_bytes()


def test_checkpoints_of_the_same_name_have_different_files(tmp_path: Path) -> None:
    paths = [
        reference_gguf(
            str(shutil.copytree(load_reference(family).folder, tmp_path / family / "model")),
            tmp_path / "cache",
            threads=1,
            progress=None,
        )
        for family in ("qwen3", "llama-2")
    ]
    assert len(set(paths)) == 2


def test_weights_of_a_checkpoint_are_not_rounded(tmp_path: Path) -> None:
    source = load_reference("qwen3").folder
    path = reference_gguf(str(source), tmp_path, threads=1, progress=None)
    exact = tmp_path / "f32.gguf"
    dynquant.convert(source, exact, recipe="f32", threads=1)
    expected = {t.name: t.data for t in gguf.GGUFReader(exact).tensors}
    for tensor in gguf.GGUFReader(path).tensors:
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(found, expected[tensor.name]), tensor.name
