"""Limits of figures, the published form of a result, and what the command prints of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from evaluating import evaluation_of
from inprocess import Done, run

import dynquant.evaluate.evaluation
from dynquant.evaluate.limits import Limits, exceeded
from dynquant.evaluate.results import Evaluation
from dynquant.json_documents import document_schema

FILES = (("good.gguf", 0.1), ("bad.gguf", 0.5))
FOUND = evaluation_of(*FILES)
GOOD, BAD = (file.figures for file in FOUND.files)


def between(name: str) -> float:
    """Return a limit that bad.gguf exceeds and good.gguf does not."""
    good, bad = (getattr(figures, name).value for figures in (GOOD, BAD))
    assert good != bad
    return (good + bad) / 2


def names(limits: Limits, found: Evaluation = FOUND) -> list[str]:
    return [line.split(":")[0] for line in exceeded(found, limits)]


def test_without_limits_nothing_is_exceeded() -> None:
    assert names(Limits()) == []


@pytest.mark.parametrize(
    ("option", "figure"),
    [("max_kl", "mean_kld"), ("max_ppl_ratio", "ppl_ratio"), ("min_same_top", "same_top")],
)
def test_a_file_that_exceeds_a_limit_is_named(option: str, figure: str) -> None:
    assert names(Limits(**{option: between(figure)})) == ["bad.gguf"]


@pytest.mark.parametrize(
    ("option", "figure"),
    [("max_kl", "mean_kld"), ("max_ppl_ratio", "ppl_ratio"), ("min_same_top", "same_top")],
)
def test_a_figure_that_equals_its_limit_does_not_exceed_it(option: str, figure: str) -> None:
    assert names(Limits(**{option: getattr(BAD, figure).value})) == []


def test_a_limit_of_zero_is_a_limit() -> None:
    assert names(Limits(max_kl=0, max_ppl_ratio=0)) == ["good.gguf"] * 2 + ["bad.gguf"] * 2


@pytest.mark.parametrize(("loops", "n"), [(0, 0), (1, 0), (2, 1)])
def test_answers_may_loop_as_often_as_those_of_the_reference(loops: int, n: int) -> None:
    found = evaluation_of(("a.gguf", 0.1), loops=loops)
    assert len(names(Limits(no_loops=True), found)) == n
    assert names(Limits(), found) == []


def test_messages_have_the_figure_and_the_limit() -> None:
    (line,) = exceeded(evaluation_of(("a.gguf", 0.1), loops=3), Limits(no_loops=True))
    assert line == "a.gguf: 75.0% of 4 greedy answers loop, 25.0% of the reference's"


# ---- the published form ----


def test_json_is_valid_by_the_published_schema() -> None:
    schema = document_schema(Evaluation, "Evaluation")
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(json.dumps(FOUND.model_dump(), allow_nan=False))
    jsonschema.validate(document, schema)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        without("files"),
        lambda d: d.update(more=1),
        lambda d: d.update(evaluation=2),
        lambda d: d["files"][0]["figures"].pop("mean_kld"),
        lambda d: d["files"][0]["files"][0].update(sha256="x"),
        lambda d: d["reference"].update(context="16"),
        lambda d: d["files"][0]["answers"][0].update(dead_ends=-1),
    ],
)
def test_the_schema_refuses_other_forms(change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(json.dumps(FOUND.model_dump()))
    change(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, document_schema(Evaluation, "Evaluation"))


def test_json_is_read_back() -> None:
    assert Evaluation.model_validate_json(json.dumps(FOUND.model_dump())) == FOUND


def test_every_member_of_the_form_is_described() -> None:
    schema = document_schema(Evaluation, "Evaluation")
    parts = {"Evaluation": schema} | schema["$defs"]
    silent = [
        f"{part}.{name}"
        for part, its in parts.items()
        for name, field in its.get("properties", {}).items()
        if "description" not in field
    ]
    assert silent == []


# ---- the command ----


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Done]:
    """Return `dynquant eval` with the result `FOUND`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dynquant.evaluate.evaluation, "evaluate", lambda *_, **__: FOUND)
    return lambda *options: run("eval", "a.gguf", "--reference", "b.gguf", *options)


def test_results_are_on_stdout_and_warnings_on_stderr(command: Callable[..., Done]) -> None:
    done = command()
    assert (done.code, done.err) == (0, "warning: a warning\n")
    assert "good.gguf" in done.out
    assert "a warning" not in done.out


def test_json_is_the_result_and_nothing_else(command: Callable[..., Done]) -> None:
    done = command("--json", "-q")
    assert (done.code, done.err) == (0, "")
    assert Evaluation.model_validate_json(done.out) == FOUND


@pytest.mark.parametrize(
    "option",
    [
        ("--max-kl", between("mean_kld")),
        ("--max-ppl-ratio", between("ppl_ratio")),
        ("--min-same-top", 100 * between("same_top")),
    ],
)
def test_an_exceeded_limit_is_exit_code_3_after_the_results(
    command: Callable[..., Done], option: tuple[str, float]
) -> None:
    done = command(*option, "--json", "-q")
    assert done.code == 3
    assert Evaluation.model_validate_json(done.out) == FOUND
    (line,) = done.err.splitlines()
    assert line.startswith("error: bad.gguf: ")


def test_kept_limits_are_exit_code_0(command: Callable[..., Done]) -> None:
    options = ("--max-kl", 9, "--max-ppl-ratio", 9, "--min-same-top", 0, "--no-loops")
    assert command(*options).code == 0


@pytest.mark.parametrize("option", ["--markdown", "--html"])
def test_a_file_that_exists_is_not_replaced(command: Callable[..., Done], option: str) -> None:
    Path("out").write_text("mine")
    done = command(option, "out")
    assert (done.code, done.out) == (1, "")
    assert Path("out").read_text() == "mine"


def test_interrupt_says_that_the_same_command_resumes(
    command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Evaluation:
        raise KeyboardInterrupt

    monkeypatch.setattr(dynquant.evaluate.evaluation, "evaluate", interrupted)
    done = command("--cache", "cache")
    assert done.code == 130
    assert done.err.splitlines()[0] == "interrupted; the same command resumes from cache"
