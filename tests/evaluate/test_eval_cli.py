"""`dynquant eval` as a user meets it: each problem is one line, and Ctrl-C resumes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
from agreement import load_reference
from evaluated import Evaluated, Models, evaluated, have_ended, models
from inprocess import Done, run
from places import ROOT, TINY_BOOKS

import dynquant
from dynquant.evaluate import process
from dynquant.evaluate.files import hashed
from dynquant.evaluate.reference import read_header
from dynquant.evaluate.results import Evaluation
from dynquant.evaluate.store import Store

pytest.importorskip("xllamacpp", reason="needs xllamacpp", exc_type=ImportError)

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
__all__ = ["evaluated", "models"]


class Command:
    """`dynquant eval` of a file against f32.gguf with a short text, in a cache for it."""

    def __init__(self, models: Models, folder: Path) -> None:
        self.models, self.folder = models, folder

    def options(self, file: Path, *more: object, text: Path | None = None) -> list[object]:
        options: list[object] = [file, "--reference", self.models.gguf("f32")]
        options += ["--text", text or self.models.texts[0], "--context", 16, "--tokens", 32]
        options += ["--n-prompts", 0, "--threads", 1, "--cache", self.folder / "cache"]
        return [*options, *more]

    def __call__(self, file: Path, *more: object, text: Path | None = None) -> Done:
        return run("eval", *self.options(file, *more, text=text))

    def refusals(self, file: Path, *more: object, text: Path | None = None) -> list[str]:
        """Return the lines of an error, without `error: `; nothing else may be printed."""
        done = self(file, *more, text=text)
        lines = done.err.splitlines()
        assert (done.code, done.out) == (1, "")
        assert all(line.startswith("error: ") for line in lines), done.err
        return [line.removeprefix("error: ") for line in lines]

    def changed(self, old: bytes, new: bytes) -> Path:
        """Copy q4_0.gguf with other bytes of the same length in one place."""
        content = self.models.gguf("q4_0").read_bytes()
        assert len(old) == len(new)
        assert old in content
        return self.written(content.replace(old, new, 1))

    def written(self, content: bytes) -> Path:
        file = self.folder / "x.gguf"
        file.write_bytes(content)
        return file


@pytest.fixture
def command(models: Models, tmp_path: Path) -> Command:
    return Command(models, tmp_path)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3") / "qwen3.gguf"
    dynquant.convert(load_reference("qwen3").folder, path, recipe="f32", threads=1)
    return path


# ---- one line each ----


def test_a_different_vocabulary_is_one_line(command: Command, qwen3: Path) -> None:
    (line,) = command.refusals(qwen3)
    assert line == (
        f"{qwen3}: has 416 tokens, the reference f32.gguf has 2,048; they are different models"
    )


def test_other_tokens_of_the_same_number_are_one_line(command: Command) -> None:
    vocabulary = json.loads((TINY_BOOKS / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    token = max(filter(str.isalpha, filter(str.isascii, vocabulary)), key=len).encode()
    length = len(token).to_bytes(8, "little")
    file = command.changed(length + token, length + token[::-1])
    (line,) = command.refusals(file)
    assert line == (
        f"{file}: has other tokens than the reference f32.gguf; they are different models"
    )


def test_a_text_that_is_too_short_is_one_line(command: Command) -> None:
    text = command.folder / "short.txt"
    text.write_text("Too short.")
    (line,) = command.refusals(command.models.gguf("q4_0"), text=text)
    assert line.startswith("short.txt: has ")
    assert line.endswith("too few for a window of 16; use a longer text or a smaller --context")


def test_a_file_that_llama_cpp_does_not_load_is_one_line(command: Command) -> None:
    length = (5).to_bytes(8, "little")
    file = command.changed(length + b"qwen3", length + b"qwenX")
    (line,) = command.refusals(file)
    assert line.startswith(f"{file}: llama.cpp does not load it: ")
    assert "unknown model architecture: 'qwenX'" in line


def test_a_truncated_file_is_one_line(command: Command) -> None:
    file = command.written(command.models.gguf("q4_0").read_bytes()[:-1000])
    (line,) = command.refusals(file)
    assert line.startswith(f"{file}: ")


def test_an_embedding_model_is_one_line(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "bert.gguf"
    dynquant.convert(load_reference("bert").folder, file, recipe="f32", threads=1)
    (line,) = command.refusals(file)
    assert line.startswith(f"{file}: ")


def test_weights_that_are_not_numbers_are_one_line_and_other_files_are_still_computed(
    command: Command,
) -> None:
    # Coarser types hide it: llama.cpp rounds activations to integers beside them.
    whole, other = command.models.gguf("f32"), command.models.gguf("q4_0")
    norm = next(t for t in gguf.GGUFReader(whole).tensors if t.name == "output_norm.weight")
    content = bytearray(whole.read_bytes())
    start, n = int(norm.data_offset), int(norm.n_bytes)
    content[start : start + n] = np.full(n // 4, np.nan, np.float32).tobytes()
    file = command.written(bytes(content))
    done = command(file, other, "-q")
    assert done.code == 1
    assert done.err == (
        f"error: {file}: llama.cpp computes logits that are not finite in window 0; the file or its"
        " model is damaged\n"
    )
    (results,) = (command.folder / "cache").glob("*.results")
    with Store.open(results) as store:
        assert store.numbers(hashed(other, lambda _, __: None).identity) == {0, 1}


def test_a_worker_that_aborts_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen
    program = "import os, sys; sys.stdin.readline(); os.abort()"

    def popen(_: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", program], **options)

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    file, reference = command.models.gguf("q4_0"), command.models.gguf("f32")
    assert command.refusals(file) == [
        f"{path}: llama.cpp ended with SIGABRT: no message" for path in (reference, file)
    ]


def test_a_chat_template_that_fails_is_one_line(command: Command) -> None:
    source = load_reference("tiny-books").folder
    file = command.folder / "x.gguf"
    template = "{{ raise_exception('only with a system message') }}"
    keys = {"tokenizer.chat_template": template}
    dynquant.convert(source, file, recipe="q8_0", threads=1, set_keys=keys)
    (line,) = command.refusals(file, "--reference", file, "--n-prompts", 1)
    assert line.startswith(f"{file}: the chat template fails: only with a system message; use")


def test_missing_files_are_reported_together(command: Command) -> None:
    lines = command.refusals(Path("none.gguf"), "--reference", "no.gguf", text=Path("no.txt"))
    assert [line.split(":")[0] for line in lines] == ["none.gguf", "no.gguf", "no.txt"]


def test_a_missing_text_is_one_line(command: Command) -> None:
    file, reference = command.models.gguf("q4_0"), command.models.gguf("f32")
    done = run("eval", file, "--reference", reference, "--cache", command.folder / "cache")
    assert (done.code, done.err) == (
        1,
        "error: --text: is missing; give a text that the model was not trained on\n",
    )


def test_options_that_a_stored_reference_does_not_have_are_refused(
    command: Command, evaluated: Evaluated
) -> None:
    stored = command.folder / "published.reference"
    stored.write_bytes(evaluated.reference.read_bytes())
    options = ["eval", command.models.gguf("q4_0"), "--reference", stored, "--n-prompts", 0]
    options += ["--cache", command.folder / "cache"]
    with Store.open(stored) as store:
        header = read_header(store)
    done = run(*options, "--context", header.context + 1, "--tokens", 20, "--tail", 0.25)
    assert done.code == 1
    assert done.err.splitlines() == [
        f"error: --context {header.context + 1}: {stored} has windows of {header.context} tokens;"
        " leave the option out",
        f"error: --tokens 20: {stored} has {header.n_windows * header.context} tokens; leave the"
        " option out",
        f"error: --tail 0.25: {stored} was made with {header.tail:g}; leave the option out",
    ]


def test_a_gate_for_loops_is_not_passed_without_answers(
    command: Command, evaluated: Evaluated
) -> None:
    stored = command.folder / "published.reference"
    stored.write_bytes(evaluated.reference.read_bytes())
    file = command.models.gguf("q4_0")
    options = ["--reference", stored, "--n-predict", 3, "--cache", command.folder / "cache", "-q"]
    done = run("eval", file, *options, "--no-loops")
    assert (done.code, done.err) == (
        1,
        f"error: {file.name}: --no-loops cannot be judged, because there are no answers\n",
    )


def test_a_file_of_results_as_reference_is_one_line(command: Command) -> None:
    (results,) = made_results(command)
    lines = command.refusals(command.models.gguf("q4_0"), "--reference", results)
    (line,) = lines
    assert line.startswith(f"{results}: has the results of files, not the reference; give ")


def made_results(command: Command) -> list[Path]:
    assert command(command.models.gguf("q4_0"), "-q").code == 0
    return list((command.folder / "cache").glob("*.results"))


def test_a_damaged_result_in_the_cache_is_one_line(command: Command) -> None:
    (results,) = made_results(command)
    connection = sqlite3.connect(results)
    connection.execute("UPDATE pieces SET content = x'00' WHERE series NOT LIKE '%cost'")
    connection.commit()
    connection.close()
    (line,) = command.refusals(command.models.gguf("q4_0"), "-q")
    assert line.startswith(f"{results}: window 0 is damaged: ")


def test_a_damaged_window_of_the_reference_is_one_line(
    command: Command, evaluated: Evaluated
) -> None:
    stored = command.folder / "published.reference"
    stored.write_bytes(evaluated.reference.read_bytes())
    connection = sqlite3.connect(stored)
    connection.execute("UPDATE pieces SET content = x'00' WHERE series='windows' AND number = 3")
    connection.commit()
    connection.close()
    file = command.models.gguf("q4_0")
    options = ("--reference", stored, "--n-prompts", 0, "--threads", 1)
    done = run("eval", file, *options, "--cache", command.folder / "cache", "-q")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {stored}: window 3: is damaged: ")
    assert done.err.count("\n") == 1


# ---- results ----


def test_results_are_on_stdout_and_repeat_the_command(command: Command) -> None:
    done = command(command.models.gguf("q4_0"), "--json", "--max-kl", 1)
    assert done.code == 0
    found = Evaluation.model_validate_json(done.out)
    assert found.command[:2] == ["dynquant", "eval"]
    assert found.command[-1] == "1"
    assert json.loads(done.out)["files"][0]["figures"]["windows"] == 2
    assert "2 windows: with fewer than 20, intervals are too narrow" in done.err


def test_an_exceeded_limit_is_exit_code_3(command: Command) -> None:
    done = command(command.models.gguf("q4_0"), "-q", "--max-kl", 1e-9)
    assert done.code == 3
    assert "Mean KLD" in done.out
    assert done.err.startswith("error: q4_0.gguf: mean KLD is 0.0")


# ---- interrupted ----


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupt_says_how_to_resume_and_leaves_no_worker(
    command: Command, number: signal.Signals, code: int
) -> None:
    text = command.folder / "long.txt"
    text.write_text(command.models.texts[0].read_text() * 200)
    options = command.options(command.models.gguf("q4_0"), "--tokens", "40k", text=text)
    running = subprocess.Popen(
        [sys.executable, "-m", "dynquant", "eval", *map(str, options)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        # A job in the background of a shell ignores Ctrl-C, and so would this process.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    with running:
        assert running.stderr is not None
        first = running.stderr.readline()  # after the first window
        assert "the reference will have about" in first
        workers = [child.pid for child in psutil.Process(running.pid).children(recursive=True)]
        # A terminal sends Ctrl-C to all processes of the group.
        os.killpg(running.pid, number)
        rest = running.stderr.read()
    assert running.returncode == code
    assert f"interrupted; the same command resumes from {command.folder / 'cache'}" in rest
    assert "Traceback" not in rest
    assert workers
    assert have_ended(workers)
