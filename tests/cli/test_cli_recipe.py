"""`dynquant recipe ...`: what the commands print, and when they fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from ggufs import add, write
from places import TINY_BOOKS
from typer.testing import CliRunner

from dynquant.arch.load import load_model
from dynquant.cli import app
from dynquant.errors import DynquantError
from dynquant.plan.apply import apply_recipe
from dynquant.recipe.loader import parse_recipe

TINY = str(TINY_BOOKS)
"""Four layers, a tied embedding, rows that all blocks divide."""

VALUE = "blk.0.attn_v.weight"

RECIPE = """\
default: Q4_K
rules:
  - role: ffn_down
    layers: 0-1
    type: Q6_K
    note: the stream is young
  - {role: output, when: {tied_embeddings: false}, type: Q8_0}
  - {name: "*norm*", optional: true, type: BF16}
  - {role: attn_v, shape: {row_multiple_of: 512}, type: Q8_0, optional: true}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE)
    return "small.yaml"


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["recipe", *args])


def messages(*args: str) -> tuple[str, ...]:
    error = run(*args).exception
    assert isinstance(error, DynquantError)
    return error.messages


def test_check_reads_a_recipe_without_any_model(recipe: str) -> None:
    done = run("check", recipe)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "small.yaml: 4 rules, no faults\n"


@pytest.mark.slow
def test_check_applies_it_to_a_model(recipe: str) -> None:
    done = run("check", recipe, TINY)
    assert done.exit_code == 0
    assert done.stderr.startswith(f"small.yaml: fits {TINY} (qwen3): 46 tensors, ")


def test_check_reports_all_faults(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("default: q4km\nrules: [{role: atn_v, type: Q6_K}]\nfalback: F16\n")
    assert [m.split(":")[1] for m in messages("check", str(path))] == ["1", "2", "3"]


@pytest.mark.slow
def test_check_reports_rules_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("default: Q4_K\nrules: [{role: experts, type: Q6_K}]\n")
    (message,) = messages("check", str(path), TINY)
    assert "applies to no tensor: the model has no experts" in message


@pytest.mark.slow
def test_check_strict_treats_warnings_as_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "default: Q4_K\nrules: [{role: ffn, type: Q6_K}, {role: ffn_down, type: Q5_K}]\n"
    )
    done = run("check", str(path), TINY)
    assert done.exit_code == 0
    assert done.stderr.startswith(f"warning: {path}:2: rule (role ffn_down) applies to no tensor")
    (message,) = messages("check", str(path), TINY, "--strict")
    assert message.startswith(f"{path}:2: rule")


@pytest.mark.slow
def test_explain_shows_every_rule_that_was_tried(recipe: str) -> None:
    done = run("explain", recipe, TINY, "blk.1.ffn_down")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "blk.1.ffn_down.weight"
    assert lines[1].startswith("Q6_K, 6.5625 bits per weight")
    assert lines[2] == "the stream is young"
    assert [line.split()[0:2] for line in lines[4:]] == [
        ["=>", "small.yaml:3"],
        ["small.yaml:7", "role"],
        ["small.yaml:8", "name"],
        ["small.yaml:9", "role"],
        ["small.yaml:1", "default"],
    ]
    assert lines[5].endswith("tied_embeddings is true")
    assert lines[6].endswith("name differs")
    assert lines[7].endswith("role is ffn_down")
    assert lines[8].endswith("an earlier rule decides")


@pytest.mark.slow
def test_explain_shows_why_rules_do_not_apply(recipe: str) -> None:
    done = run("explain", recipe, TINY, "blk.2.ffn_down.weight", "blk.0.attn_v", "output_norm")
    assert "layer is 2" in done.stdout
    assert "rows of 256 weights" in done.stdout
    assert "one dimension; the rule has no `override: true`" in done.stdout


@pytest.mark.slow
def test_explain_accepts_patterns_and_groups_equal_results(recipe: str) -> None:
    done = run("explain", recipe, TINY, "blk.*.ffn_up.weight")
    assert done.stdout.splitlines()[0] == "blk.{0-3}.ffn_up.weight"
    assert done.stdout.count("=>") == 1


@pytest.mark.slow
def test_explain_json_has_every_step(recipe: str) -> None:
    done = run("explain", recipe, TINY, "blk.1.ffn_down", "--json")
    (found,) = json.loads(done.stdout)
    assert (found["name"], found["type"], found["rule"]) == (
        "blk.1.ffn_down.weight",
        "Q6_K",
        "small.yaml:3",
    )
    assert [s["verdict"] for s in found["steps"]] == [
        "takes",
        "misses",
        "misses",
        "misses",
        "unreached",
    ]


@pytest.mark.slow
def test_explain_prints_the_fallback_of_a_rule(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "default: Q4_K\nrules: [{role: attention, not: {role: attn_q}, type: Q6_K, fallback: Q5_1}]"
    )
    done = run("explain", str(path), TINY, "blk.0.attn_q", "blk.0.attn_v")
    assert done.stdout.count("Q6_K, fallback Q5_1") == 2
    assert "`not` (role attn_q) excludes it" in done.stdout
    (found,) = json.loads(run("explain", str(path), TINY, VALUE, "--json").stdout)
    assert [s["fallback"] for s in found["steps"]] == [["Q5_1"], None]


@pytest.mark.slow
def test_explain_names_the_nearest_of_all_tensors_that_are_not_there(recipe: str) -> None:
    assert messages("explain", recipe, TINY, "blk.1.ffn_dwon.weight", "xyz") == (
        "the model has no tensor 'blk.1.ffn_dwon.weight'; did you mean blk.1.ffn_down.weight?",
        "the model has no tensor 'xyz'",
    )


@pytest.mark.slow
def test_diff_of_two_recipes_shows_types_and_cost(recipe: str) -> None:
    Path("other.yaml").write_text(RECIPE.replace("Q6_K", "Q8_0"))
    done = run("diff", recipe, "other.yaml", TINY)
    rows = [line.split() for line in done.stdout.splitlines()]
    cost = 2 * 256 * 768 * (8.5 - 6.5625) / 8
    assert rows[1] == ["ffn_down", "0-1", "2", "Q6_K", "Q8_0", "393,216", f"+{cost:,.0f}"]
    assert rows[-1] == ["2", "of", "46", "tensors", "change,", f"+{cost:,.0f}", "bytes"]


@pytest.mark.slow
def test_diff_json_lists_each_tensor(recipe: str) -> None:
    Path("other.yaml").write_text(RECIPE.replace("0-1", "0"))
    found = json.loads(run("diff", recipe, "other.yaml", TINY, "--json").stdout)
    (change,) = found["changes"]
    assert (change["name"], change["before"], change["after"]) == (
        "blk.1.ffn_down.weight",
        "Q6_K",
        "Q4_K",
    )
    assert found["after"]["tensor_bytes"] - found["before"]["tensor_bytes"] == change["bytes"]


@pytest.mark.slow
def test_diff_of_a_recipe_and_the_file_it_makes_is_empty(recipe: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["convert", TINY, "-o", "made.gguf", "-r", recipe, "--quiet"])
    assert done.exit_code == 0
    same = run("diff", recipe, "made.gguf", TINY)
    assert same.stdout.splitlines()[-1] == "0 of 46 tensors change, +0 bytes"


@pytest.mark.slow
def test_diff_of_two_files_needs_no_model(tmp_path: Path) -> None:
    x = np.ones((4, 32), np.float32)
    a = write(tmp_path / "a.gguf", lambda w: (add(w, "token_embd.weight", x), add(w, VALUE, x)))
    b = write(tmp_path / "b.gguf", lambda w: add(w, "token_embd.weight", x))
    done = run("diff", str(a), str(b))
    assert [line.split()[:5] for line in done.stdout.splitlines()[1:2]] == [
        ["attn_v", "0", "1", "F32", "-"]
    ]
    (message,) = messages("diff", str(a), "q8_0")
    assert message == "q8_0: comparing a recipe requires a model; add MODEL after A and B"


def test_diff_reports_everything_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "damaged.imatrix").write_bytes(b"no imatrix")
    found = messages(
        "diff", "a.gguf", "none.yaml", "no-model", "--imatrix", str(tmp_path / "damaged.imatrix")
    )
    assert len(found) == 4
    for part, message in zip(("a.gguf", "none.yaml", "damaged", "no-model"), found, strict=True):
        assert part in message


def test_schema_is_json(recipe: str) -> None:
    assert json.loads(run("schema").stdout)["title"] == "dynquant recipe"


@pytest.mark.slow
def test_a_recipe_that_requires_importance_is_checked_as_if_it_were_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "default: Q8_0\nimportance: required\n"
        "rules: [{role: ffn_down, when: {importance: true}, type: Q4_0}]"
    )
    done = run("explain", str(path), TINY, "blk.0.ffn_down")
    assert "Q4_0, 4.5 bits" in done.stdout


def test_ignored_imatrix_does_not_count_as_importance() -> None:
    recipe = parse_recipe(
        "default: Q8_0\nimportance: ignored\n"
        "rules: [{role: ffn_down, when: {importance: true}, type: Q4_0, optional: true}]",
        "r.yaml",
        "r",
    )
    model = load_model(TINY, needs_vocab=False)
    found = apply_recipe(recipe, model, has_imatrix=True)
    assert found.assigned.assignments["blk.0.ffn_down.weight"].type.name == "Q8_0"
