"""Evaluations of tiny-books through llama.cpp: the reference itself, coarser files, resumption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from crashes import dies
from evaluated import (
    CONTEXT,
    N_WINDOWS,
    Evaluated,
    Models,
    evaluated,
    have_ended,
    models,
    without_cost,
)
from places import TINY_BOOKS

from dynquant.checkpoint.gguf import read_gguf
from dynquant.evaluate.distributions import Measures
from dynquant.evaluate.evaluation import evaluate
from dynquant.evaluate.results import Evaluation
from dynquant.evaluate.store import Store
from dynquant.json_documents import document_schema

pytest.importorskip("xllamacpp", reason="needs xllamacpp", exc_type=ImportError)

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
__all__ = ["evaluated", "models"]


def series_of(evaluated: Evaluated, name: str) -> list[Measures]:
    """Return the stored measures of a file."""
    sha = "".join(file.sha256 for file in evaluated[name].files)
    series = hashlib.sha256(sha.encode()).hexdigest()
    (results,) = evaluated.cache.glob("*.results")
    with Store.open(results) as store:
        found = [store.get(series, i) for i in sorted(store.numbers(series))]
    return [Measures.from_bytes(content) for content in found if content is not None]


# ---- the canary: the reference against itself ----


def test_every_token_of_the_reference_itself_has_no_divergence(evaluated: Evaluated) -> None:
    windows = series_of(evaluated, "f32")
    assert len(windows) == N_WINDOWS
    assert max(abs(w.kl).max() for w in windows) <= 1e-7
    assert all(w.same_top.all() for w in windows)


def test_mean_of_the_reference_itself_is_zero(evaluated: Evaluated) -> None:
    figures = evaluated["f32"].figures
    assert abs(figures.mean_kld.value) <= 1e-7
    assert figures.ppl_ratio.value == pytest.approx(1, abs=1e-7)
    assert figures.same_top.value == 1


def test_answers_of_the_reference_itself_are_identical(evaluated: Evaluated) -> None:
    greedy, sampled = evaluated["f32"].answers
    assert (greedy.sampler.temperature, sampled.sampler.temperature) == (0, 0.8)
    assert greedy.identical.value == sampled.identical.value == 1


def test_the_figures_of_the_others_are_not_zero(evaluated: Evaluated) -> None:
    assert min(w.kl.max() for w in series_of(evaluated, "q8_0")) > 1e-5


# ---- what is reported ----


def test_q4_0_is_worse_than_q8_0(evaluated: Evaluated) -> None:
    pair = next(p for p in evaluated.found.pairs if (p.a, p.b) == ("q8_0.gguf", "q4_0.gguf"))
    assert pair.mean_kld.high < 0 < pair.same_top.low
    assert evaluated["q8_0"].figures.mean_kld.high < evaluated["q4_0"].figures.mean_kld.low


def test_json_is_valid_by_the_published_schema(evaluated: Evaluated) -> None:
    document = json.loads(json.dumps(evaluated.found.model_dump(), allow_nan=False))
    jsonschema.validate(document, document_schema(Evaluation, "Evaluation"))


def test_every_text_has_figures(evaluated: Evaluated) -> None:
    domains = evaluated["q4_0"].domains
    assert [d.text for d in domains] == ["a.txt", "b.txt"]
    assert [d.figures.windows for d in domains] == [N_WINDOWS // 2] * 2
    mean = sum(d.figures.mean_kld.value for d in domains) / 2
    assert evaluated["q4_0"].figures.mean_kld.value == pytest.approx(mean)


def test_costs_of_each_file_are_measured(evaluated: Evaluated) -> None:
    for name in ("f32", "q8_0", "q4_0"):
        cost = evaluated[name].cost
        assert min(cost.prompt_tokens_per_second, cost.generated_tokens_per_second) > 0
        assert cost.resident_bytes > 0


def test_hashes_are_of_the_files_and_the_texts(evaluated: Evaluated) -> None:
    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    found = evaluated.found
    (file,) = evaluated["q4_0"].files
    assert file.sha256 == sha256(evaluated.models.gguf("q4_0"))
    assert found.reference.model.files[0].sha256 == sha256(evaluated.models.gguf("f32"))
    assert [t.sha256 for t in found.reference.texts] == [
        sha256(path) for path in evaluated.models.texts
    ]


# ---- a stored reference, and a checkpoint ----


def test_a_stored_reference_gives_the_same_figures_and_answers(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    stored = Path(shutil.copy(evaluated.reference, tmp_path / "published.reference"))
    stored.chmod(0o444)
    settings = evaluated.models.settings(tmp_path / "cache", texts=())
    found = evaluate([evaluated.models.gguf("q4_0")], str(stored), settings)
    assert found.files[0].figures == evaluated["q4_0"].figures
    assert found.files[0].answers == evaluated["q4_0"].answers
    assert found.distributions_sha256 == evaluated.found.distributions_sha256


def test_a_checkpoint_is_a_reference_without_rounding(evaluated: Evaluated, tmp_path: Path) -> None:
    settings = evaluated.models.settings(tmp_path, prompts=(), tokens=4 * CONTEXT)
    found = evaluate([evaluated.models.gguf("f32")], str(TINY_BOOKS), settings)
    (gguf,) = (tmp_path / "models").glob("*.gguf")
    assert {t.type_name for t in read_gguf(gguf).tensors} == {"BF16", "F32"}
    # llama.cpp rounds activations to BF16 beside BF16 weights.
    assert 0 <= found.files[0].figures.mean_kld.value < 1e-4


# ---- interrupted ----


def killed_at(step: str, done: int, models: Models, cache: Path, pids: Path) -> None:
    """Run an evaluation in a process that is killed at some progress; write its workers' pids."""

    def progress(what: str, n: int, _: int) -> None:
        if what == step and n == done:
            pids.write_text(" ".join(str(p.pid) for p in psutil.Process().children()))
            dies()

    pid = os.fork()
    if not pid:
        try:
            evaluate(
                [models.gguf("q4_0")],
                str(models.gguf("f32")),
                models.settings(cache),
                progress=progress,
            )
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"it ended before {step} {done}"
    assert os.WTERMSIG(status) == signal.SIGKILL


STEPS = (
    ("f32.gguf: text", 7),
    ("f32.gguf: text", 23),
    ("f32.gguf: greedy answers", 1),
    ("f32.gguf: sampled answers", 1),
    ("q4_0.gguf: text", 5),
    ("q4_0.gguf: sampled answers", 1),
)


def test_a_run_that_is_killed_again_and_again_gives_the_same_results(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    cache, pids = tmp_path / "cache", tmp_path / "pids"
    for step, done in STEPS:
        killed_at(step, done, evaluated.models, cache, pids)
        workers = [int(pid) for pid in pids.read_text().split()]
        assert workers
        assert have_ended(workers), "the worker outlives the command"
    found = evaluated.models.evaluation(cache, "q4_0")
    expected = without_cost(evaluated.found)
    expected["files"], expected["pairs"] = [expected["files"][2]], []
    assert without_cost(found) == expected


def test_a_finished_run_computes_nothing_again(evaluated: Evaluated) -> None:
    steps: list[str] = []
    found = evaluate(
        [evaluated.models.gguf("q8_0")],
        str(evaluated.models.gguf("f32")),
        evaluated.models.settings(evaluated.cache),
        progress=lambda step, *_: steps.append(step),
    )
    assert {step.partition(": ")[2] for step in steps} == {"hashing"}
    assert found.files[0] == evaluated["q8_0"]


def test_figures_do_not_depend_on_the_number_of_threads(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads that spin while they wait take ten times as long where others use the same CPUs.
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    few: dict[str, Any] = {"tokens": 2 * CONTEXT, "prompts": ()}
    one, two = (
        evaluated.models.evaluation(tmp_path / str(n), "q4_0", threads=n, **few).files[0]
        for n in (1, 2)
    )
    of_two = two.figures.model_dump()
    for name, figure in one.figures.model_dump().items():
        assert of_two[name] == pytest.approx(figure, rel=1e-6, abs=1e-6), name
