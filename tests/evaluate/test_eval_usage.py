"""`dynquant eval` with wrong options, and without the packages that it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from inprocess import Done, run
from places import ROOT

import dynquant
import dynquant.evaluate.evaluation
from dynquant.errors import EvalError
from dynquant.evaluate import extra
from dynquant.evaluate.prompts import read_prompts, shipped_prompts

TOO_EARLY = "evaluation began with wrong options"


@pytest.fixture(autouse=True)
def no_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def early(*_: Any, **__: Any) -> None:
        raise AssertionError(TOO_EARLY)

    monkeypatch.setattr(dynquant.evaluate.evaluation, "evaluate", early)
    monkeypatch.chdir(tmp_path)


def command(*options: object) -> Done:
    return run("eval", "a.gguf", "--reference", "b.gguf", *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--context", "7"),
        ("--context", "x"),
        ("--tokens", "many"),
        ("--tokens", "-5"),
        ("--tokens", ""),
        ("--tokens", "5g"),
        ("--n-prompts", "-1"),
        ("--n-predict", "0"),
        ("--temp", "-1"),
        ("--temp", "nan"),
        ("--temp", "inf"),
        ("--top-k", "-1"),
        ("--top-k", str(2**31)),
        ("--top-p", "1.1"),
        ("--top-p", "nan"),
        ("--min-p", "2"),
        ("--min-p", "nan"),
        ("--seed", "-1"),
        ("--max-kl", "-1"),
        ("--max-kl", "nan"),
        ("--max-ppl-ratio", "nan"),
        ("--min-same-top", "101"),
        ("--min-same-top", "nan"),
        ("--min-same-top", "0.98"),
        ("--top-k", "5"),
        ("--seed", "2"),
        ("--tail", "0.6"),
        ("--tail", "nan"),
        ("--threads", "0"),
        ("--gpu-layers", "-1"),
        ("--unknown",),
    ],
)
def test_wrong_options_are_exit_code_2_and_named(options: tuple[str, ...]) -> None:
    done = command(*options)
    assert (done.code, done.out) == (2, "")
    assert options[0] in done.err


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--markdown", "a.gguf"),
        ("--markdown", "b.gguf"),
        ("--markdown", "t.txt"),
        ("--markdown", "./prompts.txt"),
        ("--markdown", "link.md"),
        ("--html", "page.html"),
    ],
)
def test_an_output_that_is_an_input_is_refused(option: str, name: str) -> None:
    for file in ("a.gguf", "b.gguf", "t.txt", "prompts.txt", "page.html"):
        Path(file).write_text("x")
    Path("link.md").symlink_to("b.gguf")
    texts = ("--text", "t.txt", "--text", "page.html", "--prompts", "prompts.txt")
    done = command(*texts, option, name, "--force")
    message = "is a file that this command reads; name another output"
    assert done == Done(1, "", f"error: {Path(name)}: {message}\n")


def test_an_output_in_the_cache_is_refused() -> None:
    Path("cache").mkdir()
    done = command("--cache", "cache", "--markdown", "cache/x.reference", "--force")
    message = "is in the folder of --cache; name an output elsewhere"
    assert done == Done(1, "", f"error: cache/x.reference: {message}\n")


def test_a_gate_for_loops_without_answers_is_refused() -> None:
    done = command("--no-loops", "--n-prompts", 0)
    message = "--no-loops: needs answers to judge; use --n-prompts above 0"
    assert done == Done(1, "", f"error: {message}\n")


@pytest.mark.parametrize("arguments", [("a.gguf",), ("--reference", "b.gguf")])
def test_missing_arguments_are_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert run("eval", *arguments).code == 2


@pytest.mark.parametrize(
    ("text", "n"),
    [("250k", 250_000), ("2M", 2_000_000), ("1.5k", 1500), ("1,000", 1000), ("7", 7)],
)
def test_tokens_are_numbers_with_k_or_m(monkeypatch: pytest.MonkeyPatch, text: str, n: int) -> None:
    seen: list[int] = []

    def evaluate(files: Any, reference: Any, settings: Any, **_: Any) -> None:
        seen.append(settings.tokens)
        raise EvalError("enough")

    monkeypatch.setattr(dynquant.evaluate.evaluation, "evaluate", evaluate)
    assert command("--tokens", text).code == 1
    assert seen == [n]


# ---- packages ----


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    real = extra.find_spec
    monkeypatch.setattr(extra, "find_spec", lambda n: None if n in missing else real(n))


def test_missing_packages_are_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "xllamacpp", "scipy")
    assert command() == Done(
        1,
        "",
        "error: evaluation needs scipy, xllamacpp, not installed here: pip install"
        " 'dynquant-gguf[eval]'\n",
    )


def test_missing_packages_are_an_error_of_the_python_api(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "psutil")
    with pytest.raises(EvalError, match="evaluation needs psutil"):
        dynquant.evaluate_files(["a.gguf"], "b.gguf", texts=["c.txt"])


def test_help_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *extra.PACKAGES)
    assert run("eval", "--help").code == 0


def test_the_extra_is_what_is_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = project["optional-dependencies"]["eval"]
    assert {re.split(r"[>=<]", name)[0] for name in listed} == set(extra.PACKAGES)


# ---- prompts ----


def test_the_shipped_prompts_are_300_different_lines() -> None:
    found = shipped_prompts()
    assert len(found) == len(set(found)) == 300
    assert all(prompt.strip() == prompt != "" for prompt in found)


def test_prompts_are_the_lines_of_a_file_that_are_not_empty() -> None:
    Path("p").write_text("one\n\n  \ntwo\\nlines\ncaf\u00e9", "utf-8")
    assert read_prompts(Path("p")) == ["one", "two\nlines", "caf\u00e9"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "p: cannot be read: No such file or directory"),
        (b"", "p: has no prompt; write one on each line"),
        (b" \n\n", "p: has no prompt; write one on each line"),
        (b"caf\xe9", "p: is not UTF-8 at byte 3; convert it to UTF-8"),
    ],
)
def test_prompts_that_cannot_be_read_are_one_line(content: bytes | None, message: str) -> None:
    if content is not None:
        Path("p").write_bytes(content)
    assert command("--prompts", "p") == Done(1, "", f"error: {message}\n")
