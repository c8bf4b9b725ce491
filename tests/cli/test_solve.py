"""`solve`, `sensitivity`, and sizes of `plan` and `convert`: what is printed, written, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluated import TEXTS
from inprocess import run
from places import TINY_BOOKS

from dynquant.recipe.loader import load_recipe

RECIPE = """\
default: Q8_0
rules:
  - {role: ffn, choose: [Q8_0, Q4_K, Q2_K]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE)
    return path


def test_solve_prints_the_recipe_and_says_what_it_found(recipe: Path, tmp_path: Path) -> None:
    done = run("solve", TINY_BOOKS, "-r", recipe, "--target-bpw", 6)
    assert done.code == 0
    assert done.err.startswith("own-6bpw: ")
    assert "expected KL divergence" in done.err
    path = tmp_path / "printed.yaml"
    path.write_text(done.out)
    assert load_recipe(path).name == "own-6bpw"


def test_solve_writes_the_recipe_and_prints_what_roles_cost(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "solved.yaml"
    done = run("solve", TINY_BOOKS, "-r", recipe, "--target-size", "3MB", "-o", out)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split()[:3] == ["role", "types", "bytes"]
    assert {line.split()[0] for line in lines[1:4]} == {"ffn_down", "ffn_gate", "ffn_up"}
    assert "asked   3.00 MB" in done.out
    converted = run("convert", TINY_BOOKS, "-r", out, "-o", tmp_path / "m.gguf", "-q")
    assert converted.code == 0
    assert 2.9e6 < (tmp_path / "m.gguf").stat().st_size <= 3e6
    again = run("solve", TINY_BOOKS, "-r", recipe, "--target-size", "3MB", "-o", out)
    assert again.code == 1
    assert "exists; replace it with --force" in again.err


def test_solve_as_json_has_roles_and_tensors(recipe: Path) -> None:
    done = run("solve", TINY_BOOKS, "-r", recipe, "--fit", "30MiB", "--context", 2048, "--json")
    found = json.loads(done.out)
    assert found["memory"]["context"] == 2048
    assert (
        sum(found["memory"][k] for k in ("cache", "state", "buffers")) + found["file_bytes"]
        <= 30 << 20
    )
    assert {role["role"] for role in found["roles"]} == {"ffn_down", "ffn_gate", "ffn_up"}
    assert found["expected_kld"] == pytest.approx(sum(r["expected_kld"] for r in found["roles"]))
    assert found["tensors"]["token_embd.weight"] == "Q8_0"


def test_convert_and_plan_take_a_size(recipe: Path, tmp_path: Path) -> None:
    planned = run("plan", TINY_BOOKS, "-r", recipe, "--target-size", "3MB")
    assert planned.code == 0
    assert "by recipe own-3.00MB" in planned.out
    out = tmp_path / "m.gguf"
    done = run("convert", TINY_BOOKS, "-r", recipe, "--target-size", "3MB", "-o", out)
    assert done.code == 0
    assert out.stat().st_size <= 3_000_000


def test_a_recipe_with_a_target_needs_no_option(recipe: Path) -> None:
    recipe.write_text(f"target: 3MB\n{RECIPE}")
    done = run("plan", TINY_BOOKS, "-r", recipe, "--json")
    assert done.code == 0
    assert json.loads(done.out)["file_bytes"] <= 3_000_000


def test_a_sensitivity_file_gives_the_same_recipe(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    made = run("sensitivity", TINY_BOOKS, "-r", recipe, "-o", out)
    assert made.code == 0
    asked = ("solve", TINY_BOOKS, "-r", recipe, "--target-bpw", 5)
    assert run(*asked, "--sensitivity", out).out == run(*asked).out
    before = out.read_bytes()
    assert run("sensitivity", TINY_BOOKS, "-r", recipe, "-o", out).code == 0
    assert out.read_bytes() == before


def test_a_sensitivity_file_of_another_recipe_is_one_error(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    run("sensitivity", TINY_BOOKS, "-r", recipe, "-o", out)
    recipe.write_text(RECIPE.replace("Q2_K", "Q3_K"))
    done = run("solve", TINY_BOOKS, "-r", recipe, "--target-bpw", 6, "--sensitivity", out)
    assert done.code == 1
    assert "has no error of Q3_K; measure with this recipe" in done.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plan", "M"), "missing option: --recipe R, --target-size SIZE, or --plan PLAN.json"),
        (("solve", "M", "--target-size", "1GB", "--fit", "1GB"), "give one of --target-size and"),
        (("solve", "M", "--target-size", "big"), "'big' is not a size"),
        (("solve", "M", "--target-size", "1GB", "--context", "9"), "--context is for --fit"),
        (("solve", "M", "--verify"), "--verify needs a text"),
        (("solve", "M", "--text", "t"), "--text is for --verify"),
        (("sensitivity", "M", "-o", "s.json", "--measure"), "--measure needs a text"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    arguments: tuple[str, ...], expected: str
) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert expected in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--target-size", "1MB"), "no file of 1.00 MB"),
        (("-r", "q8_0", "--target-size", "1MB"), "has no rule with `choose`"),
        (("--target-size", "9MB", "--sensitivity", "none.json"), "none.json: cannot be read"),
    ],
)
def test_what_cannot_be_is_one_error(arguments: tuple[str, ...], expected: str) -> None:
    done = run("plan", TINY_BOOKS, *arguments)
    assert done.code == 1
    assert [line[:7] for line in done.err.splitlines()] == ["error: "]
    assert expected in done.err


@pytest.mark.slow
@pytest.mark.oracle
def test_verify_keeps_the_recipe_that_loses_least(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text, out = tmp_path / "text.txt", tmp_path / "best.yaml"
    text.write_text(TEXTS[0] * 8)
    verified = ("--verify", "--text", text, "--tokens", 1024)
    done = run("solve", TINY_BOOKS, "--target-bpw", 4.6, *verified, "-o", out)
    assert done.code == 0
    best = done.err.splitlines()[-2].split()[0]
    rows = [line.split() for line in done.out.splitlines()[2:6]]
    losses = {row[0].removesuffix(".gguf"): float(row[4]) for row in rows}
    assert len(losses) == 4
    assert best == min(losses, key=lambda name: losses[name])
    assert load_recipe(out).name


def test_commands_of_recipes_say_which_types_are_open(recipe: Path, tmp_path: Path) -> None:
    checked = run("recipe", "check", recipe, TINY_BOOKS)
    assert checked.code == 0
    assert "12 of them with types that the size decides" in checked.err
    explained = run("recipe", "explain", recipe, TINY_BOOKS, "blk.0.ffn_down.weight")
    assert "open: Q8_0, Q4_K, Q2_K; the size of the file decides" in explained.out
    as_json = run("recipe", "explain", recipe, TINY_BOOKS, "blk.0.ffn_down.weight", "--json")
    (found,) = json.loads(as_json.out)
    assert (found["type"], found["open"]) == (None, ["Q8_0", "Q4_K", "Q2_K"])
    for command in (
        ("diff", recipe, "q8_0", TINY_BOOKS),
        ("export", recipe, TINY_BOOKS, "-o", tmp_path / "types.txt"),
    ):
        done = run("recipe", *command)
        assert done.code == 1
        assert "leaves the types of 12 tensors to the size of the file" in done.err
