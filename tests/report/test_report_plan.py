"""`dynquant plan` in a terminal and as a page: tables by role and by tensor, totals, refusals."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import computed_tensor, model, recipe, shown, small_plan
from pages import read_page
from places import TINY_BOOKS
from rich.console import Console

from dynquant.conversion.write import convert_plan
from dynquant.errors import PlanError
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.recipe.rules import Output
from dynquant.report.documents import plan_json
from dynquant.report.html import plan_html
from dynquant.report.plan_tables import plan_tables
from dynquant.report.tables import ranges
from dynquant.report.totals import by_role, by_rule, by_type, fallbacks

MODEL = TINY_BOOKS
FALLBACK = "rules:\n  - {role: ffn_down, type: Q6_K, note: why not}\nfallback: [Q8_0]\n"


def odd_plan(more: str = FALLBACK) -> Plan:
    """Two roles with rows of 32 weights, which blocks of 256 do not divide."""
    names = ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight", "blk.0.ffn_up.weight")
    tensors = [computed_tensor(name, 4, 32) for name in names]
    return make_plan(model(*tensors, computed_tensor("output.weight", 4, 32)), recipe("Q4_K", more))


def each(plan: Plan) -> list[str]:
    drawn = io.StringIO()
    Console(file=drawn, width=1000).print(plan_tables(plan, 0, each=True))
    return [line.rstrip() for line in drawn.getvalue().splitlines()]


def test_each_role_has_a_line_for_each_type_with_its_layers() -> None:
    lines = shown(small_plan(more="rules:\n  - {role: ffn_down, layers: 1, type: Q4_0}\n"))
    downs = [line.split()[:4] for line in lines.splitlines() if line.startswith("ffn_down")]
    assert downs == [["ffn_down", "0", "1", "Q8_0"], ["ffn_down", "1", "1", "Q4_0"]]


def test_many_ranges_of_layers_are_shortened_in_the_middle() -> None:
    assert ranges([3, 0, 1, 0, 2, 5, 8, 9]) == "0-3,5,8-9"
    assert ranges(range(3, 64, 4)) == "3,7,11,…,63"
    assert ranges(range(0, 12, 2)) == "0,2,4,6,8,10"


@pytest.mark.slow
def test_plan_states_which_readers_read_its_types_and_which_do_not() -> None:
    plan = small_plan("IQ4_NL")
    assert (
        "\nreaders llama.cpp, Ollama, LM Studio, vLLM, transformers, ik_llama.cpp; not mistral.rs,"
        " candle (IQ4_NL)\n"
    ) in shown(plan)
    assert "not mistral.rs, candle (IQ4_NL)" in plan_html(plan, 0)
    found = plan_json(plan)["readers"]
    assert (found["vLLM"], found["candle"]) == ((), ("IQ4_NL",))
    other = plan_json(replace(plan, architecture="deepseek2"))["readers"]
    assert other["candle"] == ("IQ4_NL", "architecture deepseek2")


def test_each_tensor_has_a_line_with_shape_type_bytes_bits_and_rule() -> None:
    plan = odd_plan()
    lines = each(plan)
    assert " ".join(lines[2].split()) == "tensor shape type bytes bpw importance rule note"
    for line, t in zip(lines[3:], plan.tensors, strict=False):
        rule = f"{t.rule}, fallback for {t.instead_of.name}" if t.instead_of else t.rule
        assert line.split()[:6] == [t.name, "4x32", "Q8_0", "136", "8.500", "none"]
        assert line.split("none", 1)[1].strip().startswith(rule)
    assert lines[3].endswith(" why not")
    assert len(plan.tensors) == 4


def test_there_is_no_column_of_notes_without_notes() -> None:
    assert "note" not in each(small_plan())[2].split()


def test_fallbacks_are_counted_with_their_cost() -> None:
    used = {f.wanted.name: f for f in fallbacks(odd_plan().tensors)}
    assert used["Q6_K"].names == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    # Q8_0 is 34 bytes for 32 weights, Q6_K 210 for 256, Q4_K 144 for 256.
    assert used["Q6_K"].extra_bytes == round(2 * 128 * (34 / 32 - 210 / 256))
    assert used["Q4_K"].extra_bytes == round(2 * 128 * (34 / 32 - 144 / 256))
    text = shown(odd_plan())
    assert "fallback Q8_0 for Q6_K: 2 tensors, +1.938 bits per weight" in text
    assert "blk.{0-1}.ffn_down.weight" in text
    assert "all fallbacks: 4 tensors" in text
    assert f"{8 * (62 + 128) / 512:+.4f} bits per weight of the model" in text


def test_plan_without_fallbacks_mentions_none() -> None:
    assert "fallback" not in shown(small_plan())


def test_types_are_counted() -> None:
    assert "types   Q8_0 4, F32 2" in shown(small_plan())


def test_shards_are_listed_if_there_are_several() -> None:
    made = replace(recipe(), output=Output(shard_bytes=40_000))
    plan = make_plan(model(), made)
    assert [shard.stop for shard in plan.shards] == [2, 3, 4, 6]
    assert "shards  4: 11.1 kB (10.9 KiB), 36.4 kB (35.6 KiB), " in shown(plan)
    assert "shards" not in shown(small_plan())


def test_shares_contain_every_tensor_once() -> None:
    plan = odd_plan()
    for shares in (by_role(plan.tensors), by_type(plan.tensors), by_rule(plan.tensors)):
        found = [t.name for share in shares for t in share.tensors]
        assert sorted(found) == sorted(t.name for t in plan.tensors)


def test_rules_are_in_the_order_of_the_recipe_then_default_then_built_in() -> None:
    more = (
        "rules:\n"
        + "\n" * 7
        + "  - {role: ffn_down, type: Q4_0}\n  - {role: ffn_up_exps, type: Q4_0}\n"
    )
    rules = [share.name for share in by_rule(small_plan(more=more).tensors)]
    assert rules == [
        "recipes/hand.yaml:10",
        "recipes/hand.yaml:11",
        "recipes/hand.yaml:1 default",
        "built-in: one dimension",
    ]


def test_draft_reports_missing_importance_and_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as e:
        make_plan(model(), recipe("IQ1_S"))
    plan = make_plan(model(), recipe("IQ1_S"), draft=True)
    assert plan.refusals == e.value.messages
    assert "importance needed by 4 tensors (IQ1_S), missing for token_embd.weight" in shown(plan)
    with pytest.raises(PlanError, match="IQ1_S needs importance"):
        convert_plan(plan, tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


def test_draft_is_refused_for_other_reasons() -> None:
    with pytest.raises(PlanError, match="exists 2 times"):
        make_plan(
            model(computed_tensor("a", 2, 32), computed_tensor("a", 2, 32)), recipe(), draft=True
        )


def plan(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dynquant.cli", "plan", MODEL, *args]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.mark.slow
def test_command_prints_each_tensor_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    done = plan("-r", "dynamic-4bit", "--tensors", "--html", page)
    assert (done.returncode, done.stderr) == (0, f"{page}: written\n")
    document = json.loads(plan("-r", "dynamic-4bit", "--json").stdout)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [t["name"] for t in document["tensors"]] == [
        w[0] for w in lines if w and w[0].endswith(".weight")
    ]
    cells = read_page(page.read_text(encoding="utf-8")).all("div", "c")
    assert len(cells) == len(document["tensors"])
    assert f"{document['file_bytes'] / 1e6:.2f} MB" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_existing_page_is_replaced_only_with_force(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    page.write_text("mine")
    done = plan("-r", "q8_0", "--html", page)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {page}: exists; replace it with --force, or name another file\n"
    assert page.read_text() == "mine"
    assert plan("-r", "q8_0", "--html", page, "--force").returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_missing_importance_is_an_error_after_the_plan_is_shown(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("default: IQ2_XXS\n")
    done = plan("-r", tmp_path / "low.yaml", "--html", tmp_path / "plan.html")
    assert done.returncode == 1
    assert "attn_q" in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "IQ2_XXS needs importance" in errors[0]
    assert "cannot be converted" in (tmp_path / "plan.html").read_text(encoding="utf-8")
