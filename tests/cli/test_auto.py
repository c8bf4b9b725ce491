"""`auto`: its files, what is done again and what is not, and what is refused before any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evaluated import TEXTS
from inprocess import Done, run
from places import REFERENCES, TINY_BOOKS
from second_moments import write_importance

import dynquant
from dynquant.calibrate import extra
from dynquant.cli import solve
from dynquant.evaluate import extra as evaluate_extra
from dynquant.recipe.loader import load_recipe

RECIPE = """\
default: Q8_0
rules:
  - {role: ffn, choose: [Q8_0, Q4_K, Q2_K]}
"""
STAGES = ("sensitivity", "solve", "convert", "report")


class Folder:
    """A folder with a recipe and an imatrix, in which `auto` is run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        matrices = [t for t in dynquant.load_model(TINY_BOOKS).tensors if len(t.shape) > 1]
        self.imatrix = write_importance(path / "own.imatrix.gguf", *matrices)
        self.recipe = path / "own.yaml"
        self.recipe.write_text(RECIPE)

    def auto(self, *more: object, bpw: float = 6, out: str = "o.gguf") -> Done:
        own = ("--imatrix", self.imatrix, "-r", self.recipe, "--target-bpw", bpw)
        return run("auto", TINY_BOOKS, "-o", self.path / out, *own, *more)

    def names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}

    def bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.path.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def commands(done: Done) -> list[str]:
    """Return the stages that were carried out."""
    return [line.split(":")[0] for line in done.err.splitlines() if ": done in " in line]


def test_every_stage_leaves_its_files_and_is_done_once(folder: Folder) -> None:
    done = folder.auto("--skip", "evaluate")
    assert done.code == 0, done.err
    assert commands(done) == list(STAGES)
    assert folder.names() == {
        *("own.yaml", "own.imatrix.gguf", "tiny-books.sensitivity.json", "tiny-books.auto.json"),
        *("o.yaml", "o.gguf", "o.gguf.manifest.json", "o.plan.json", "o.plan.html"),
    }
    document = json.loads((folder.path / "o.plan.json").read_text())
    assert document["file_bytes"] == (folder.path / "o.gguf").stat().st_size
    before = folder.bytes()
    again = folder.auto("--skip", "evaluate")
    assert again.code == 0
    assert commands(again) == []
    assert folder.bytes() == before


def test_the_projector_is_a_stage_that_other_sizes_share(tmp_path: Path) -> None:
    model = REFERENCES / "projectors" / "qwen3vl"
    skipped = [w for s in ("importance", "evaluate", "report") for w in ("--skip", s)]

    def auto(out: str, bpw: float) -> Done:
        given = ("-o", tmp_path / out, "--target-bpw", bpw, "--mmproj", "BF16", *skipped)
        return run("auto", model, *given)

    done = auto("a.gguf", 12)
    assert done.code == 0, done.err
    assert commands(done) == ["sensitivity", "solve", "projector", "convert"]
    assert run("convert", model, "-o", tmp_path / "p.gguf", "--only-mmproj", "-r", "bf16").code == 0
    projector = tmp_path / "mmproj-Qwen3Vl-BF16.gguf"
    assert projector.read_bytes() == (tmp_path / "p.gguf").read_bytes()
    assert commands(auto("b.gguf", 10)) == ["solve", "convert"]


def test_a_projector_that_there_is_not_is_refused_before_any_stage(folder: Folder) -> None:
    done = folder.auto("--mmproj")
    assert done.code == 1
    assert "has no part that sees or hears" in done.err
    assert not (folder.path / "o.gguf").exists()


def test_stages_are_the_commands_that_are_printed(folder: Folder, tmp_path: Path) -> None:
    folder.auto("--skip", "evaluate")
    before = folder.bytes()
    printed = folder.auto("--skip", "evaluate", "--dry-run").out
    line = next(line for line in printed.splitlines() if line.startswith("convert"))
    arguments = line[line.index("dynquant") :].split()[1:-1]
    assert run(*arguments, tmp_path / "by-hand.gguf").code == 0
    assert (tmp_path / "by-hand.gguf").read_bytes() == before["o.gguf"]


def test_another_size_takes_the_files_of_the_model(folder: Folder) -> None:
    folder.auto("--skip", "evaluate")
    other = folder.auto("--skip", "evaluate", "--skip", "report", bpw=7, out="p.gguf")
    assert commands(other) == ["solve", "convert"]
    assert load_recipe(folder.path / "p.yaml").name == "own-7bpw"
    assert commands(folder.auto("--skip", "evaluate")) == []


def test_an_interrupted_run_resumes_with_the_same_stage(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(solve, "posed", interrupt)
        done = folder.auto("--skip", "evaluate")
    assert done.code == 130
    assert "the same command resumes with stage 2, solve" in done.err
    assert commands(done) == ["sensitivity"]
    assert commands(folder.auto("--skip", "evaluate")) == list(STAGES[1:])


def test_a_recipe_that_was_edited_is_not_replaced_without_force(folder: Folder) -> None:
    folder.auto("--skip", "evaluate")
    solved = folder.path / "o.yaml"
    text = solved.read_text()
    solved.write_text(f"# mine\n{text}")
    done = folder.auto("--skip", "evaluate")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "o.yaml: was changed since this command wrote it; --force replaces it" in done.err
    assert "--skip solve converts with it" in done.err
    kept = folder.auto("--skip", "evaluate", "--skip", "solve")
    assert commands(kept) == ["convert", "report"]
    assert solved.read_text() == f"# mine\n{text}"
    forced = folder.auto("--skip", "evaluate", "--force")
    assert commands(forced) == list(STAGES[1:])
    assert solved.read_text() == text


def test_other_weights_of_the_same_model_are_not_done(folder: Folder, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_BOOKS, model)
    asked = ("-r", folder.recipe, "--imatrix", folder.imatrix, "--target-bpw", 6)
    again = ("auto", model, "-o", tmp_path / "o.gguf", *asked, "--skip", "evaluate")
    assert commands(run(*again)) == list(STAGES)
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-500_000:-400_000] = bytes(100_000)
    weights.write_bytes(content)
    os.utime(weights, ns=(10**18, 10**18))
    before = (tmp_path / "o.gguf").read_bytes()
    assert commands(run(*again)) == list(STAGES)
    assert (tmp_path / "o.gguf").read_bytes() != before


def test_a_recipe_that_is_extended_counts_as_input(folder: Folder) -> None:
    base = folder.path / "base.yaml"
    base.write_text(RECIPE)
    folder.recipe.write_text("extends: base.yaml\n")
    folder.auto("--skip", "evaluate")
    base.write_text(RECIPE.replace("Q8_0, Q4_K, Q2_K", "Q6_K, Q3_K"))
    assert commands(folder.auto("--skip", "evaluate")) == list(STAGES)


def test_a_lost_intermediate_is_made_again_alone(folder: Folder) -> None:
    folder.auto("--skip", "evaluate")
    before = folder.bytes()
    (folder.path / "tiny-books.sensitivity.json").unlink()
    assert commands(folder.auto("--skip", "evaluate")) == ["sensitivity"]
    assert folder.bytes() == before


def test_no_output_takes_the_place_of_an_input(folder: Folder) -> None:
    done = folder.auto("--force", out="own.gguf")
    assert done.code == 1
    assert [line.rpartition("/")[2] for line in done.err.splitlines()][-1] == (
        "own.yaml: is a file that this command reads; name another output"
    )
    assert folder.recipe.read_text() == RECIPE


def test_the_dry_run_prints_stages_and_leaves_nothing(folder: Folder) -> None:
    before = folder.names()
    done = folder.auto("--dry-run")
    assert done.code == 0
    rows = [line.split()[0] for line in done.out.splitlines()]
    assert rows == ["stage", *STAGES, "to"]
    assert "the output is not evaluated: give --text FILE, or --skip evaluate" in done.err
    assert folder.names() == before


def test_all_that_is_wrong_is_said_at_once(folder: Folder, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text(TEXTS[0])
    done = folder.auto(
        *("--text", text, "--tune", text, "--calibration", tmp_path / "no.txt"),
        *("--folder", tmp_path / "nowhere"),
    )
    assert done.code == 1
    errors = done.err.splitlines()
    assert [e.split(": ")[1].rpartition("/")[2] for e in errors] == [
        *("no.txt", "t.txt", "nowhere")
    ]
    assert "is given as --text and as --tune" in errors[1]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ((), 1, "no size is asked for"),
        (("--target-bpw", 6, "--tune", "t", "--skip", "sensitivity"), 2, "skip measure, too"),
        (("--target-bpw", 6, "--skip", "solve"), 1, "o.yaml: is missing; without --skip solve"),
        (("--target-bpw", 6, "--skip", "lunch"), 2, "lunch: is not one of importance, feedback"),
        (("--target-bpw", 6, "--moments", "m"), 2, "--moments needs --imatrix"),
        (("--target-bpw", 1), 1, "no file of 1 bpw is possible"),
        (("--target-bpw", 6, "-r", "q8_0"), 1, "has no rule with `choose`"),
    ],
)
def test_what_cannot_be_is_one_error(
    folder: Folder, arguments: tuple[object, ...], code: int, expected: str
) -> None:
    recipe = () if "-r" in arguments else ("-r", folder.recipe)
    done = run("auto", TINY_BOOKS, "-o", folder.path / "o.gguf", *recipe, *arguments)
    assert done.code == code
    assert expected in " ".join(done.err.split())
    assert folder.names() == {"own.yaml", "own.imatrix.gguf"}


def test_without_the_extra_importance_is_left_out_and_said(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "PACKAGES", ("no_such_package",))
    out = folder.path / "o.gguf"
    asked = ("--target-bpw", 6, "-r", folder.recipe, "--skip", "evaluate", "--dry-run")
    done = run("auto", TINY_BOOKS, "-o", out, *asked)
    assert done.code == 0
    assert "warning: importance is left out: computing an imatrix needs no_such" in done.err
    assert "--imatrix" not in done.out


def test_auto_needs_no_extra_for_what_it_leaves_out(folder: Folder) -> None:
    missing = [*extra.PACKAGES, *evaluate_extra.PACKAGES]
    own = ("-r", folder.recipe, "--imatrix", folder.imatrix, "--target-bpw", 6)
    words = ("dynquant", "auto", TINY_BOOKS, "-o", folder.path / "o.gguf", *own)
    program = (
        f"import sys; sys.modules |= dict.fromkeys({missing}); sys.argv = {[*map(str, words)]}\n"
        "from dynquant.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder.path / "o.gguf").exists()


@pytest.mark.slow
@pytest.mark.torch
def test_importance_is_computed_and_moments_are_used(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra calibrate")
    text, own = tmp_path / "c.txt", tmp_path / "own.yaml"
    text.write_text(TEXTS[0] * 8)
    own.write_text(RECIPE.replace("Q2_K", "IQ2_XXS"))
    asked = ("--target-bpw", 5, "-r", own, "--calibration", text, "--chunks", 2)
    out = tmp_path / "o.gguf"
    done = run("auto", TINY_BOOKS, "-o", out, *asked, "--skip", "evaluate", "--skip", "report")
    assert done.code == 0, done.err
    assert commands(done) == ["importance", "sensitivity", "solve", "convert"]
    keys = dynquant.inspect(out).keys
    assert keys["quantize.imatrix.file"].value == "tiny-books.imatrix.gguf"
    assert "error feedback: 28 of 28 matrices" in done.err
    again = run("auto", TINY_BOOKS, "-o", out, *asked, "--skip", "evaluate", "--skip", "report")
    assert commands(again) == []


@pytest.mark.slow
@pytest.mark.oracle
def test_the_output_is_evaluated_on_a_text_that_nothing_else_read(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    text, tune = cache.with_name("t.txt"), cache.with_name("u.txt")
    text.write_text(TEXTS[0] * 8)
    tune.write_text(TEXTS[1] * 8)
    texts = ("--text", text, "--tune", tune, "--tokens", 1024, "--n-prompts", 0)
    done = folder.auto(*texts)
    assert done.code == 0, done.err
    assert commands(done) == ["sensitivity", "solve", "convert", "evaluate", "report"]
    document = json.loads((tmp_path / "o.eval.json").read_text())
    assert [t["name"] for t in document["reference"]["texts"]] == ["t.txt"]
    assert "Mean KLD" in done.out
    measured = json.loads((tmp_path / "o.sensitivity.json").read_text())["measured"]
    assert list(measured["texts"]) == ["u.txt"]
    assert (tmp_path / "o.yaml").read_text().startswith("# Measured on u.txt: KL divergence solved")
    again = folder.auto(*texts)
    assert commands(again) == []
    assert "Mean KLD" in again.out
