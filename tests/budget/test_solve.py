"""Recipes for a size: exact bytes, the rules that hold, and what cannot be."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from handmade import KEYS, computed_tensor
from second_moments import write_importance

import dynquant
from dynquant.api import convert_plan
from dynquant.arch.base import Model, ModelTensor
from dynquant.budget.goal import file_bytes_of
from dynquant.budget.memory import memory_of
from dynquant.budget.sizes import sizes_of
from dynquant.budget.solve import Problem, Solved, pose, solve_for, solve_recipe
from dynquant.conversion.layout import lay_out
from dynquant.errors import PlanError
from dynquant.inputs import Inputs
from dynquant.plan.make import make_plan
from dynquant.quants import ALL
from dynquant.recipe.loader import load_recipe, parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.target import Target
from dynquant.report.html import plan_html
from dynquant.report.solved import budget_picture, roles_of, solved_line

N_LAYERS = 3
ROLES = ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def tensors() -> tuple[ModelTensor, ...]:
    found = [computed_tensor("token_embd.weight", 37, 256, seed=9)]
    for layer in range(N_LAYERS):
        for i, role in enumerate(ROLES):
            rows = (64, 64, 96, 96, 48)[i]
            name = f"blk.{layer}.{role}.weight"
            found.append(computed_tensor(name, rows, 256, seed=10 * layer + i))
        found.append(computed_tensor(f"blk.{layer}.attn_norm.weight", 256))
    return tuple(found)


MODEL = Model("llama", dict(KEYS), tensors(), {})
ANY = "rules: [{name: '*', choose: any}]"


def inputs(text: str = ANY, folder: Path | None = None) -> Inputs:
    """Return a model and a recipe; folder: for an imatrix."""
    imatrix = None
    if folder:
        matrices = [t for t in tensors() if len(t.shape) > 1]
        imatrix = dynquant.load_imatrix(write_importance(folder / "i.gguf", *matrices))
    return Inputs(MODEL, parse_recipe(f"default: Q8_0\n{text}", "own.yaml", "own"), imatrix)


def solved(text: str = ANY, folder: Path | None = None, **asked: Any) -> Solved:
    return solve_recipe(inputs(text, folder), Target(**asked), threads=2)


def types_of(found: Solved) -> dict[str, str]:
    return {t.name: t.type.name for t in found.plan.tensors}


@pytest.mark.parametrize("size", [70_000, 100_000, 123_457, 200_000])
def test_the_file_is_never_larger_and_nearly_as_large(tmp_path: Path, size: int) -> None:
    found = solved(folder=tmp_path, size=size)
    convert_plan(found.plan, tmp_path / "out.gguf")
    n_bytes = (tmp_path / "out.gguf").stat().st_size
    assert n_bytes == found.file_bytes == lay_out(found.plan).n_bytes
    assert size * 0.99 < n_bytes <= size


def test_no_choice_of_types_is_better() -> None:
    few = Model("llama", dict(KEYS), tensors()[:5], {})
    recipe = parse_recipe(
        "default: Q8_0\nrules: [{name: '*', choose: [Q8_0, Q4_K, Q2_K]}]", "own.yaml", "own"
    )
    problem = pose(Inputs(few, recipe, None), target=Target())
    size = 40_000
    found = solve_for(problem, Target(size=size))
    best = min(
        sum(d[t.name] for d, t in zip(problem.damage, choice, strict=True))
        for choice in itertools.product(*(g.types for g in problem.groups))
        if size_with(problem, choice) <= size
    )
    assert found.solution.damage == pytest.approx(best, rel=1e-12)


def size_with(problem: Problem, choice: Any) -> int:
    types = {n: t for g, t in zip(problem.groups, choice, strict=True) for n in g.names}
    return file_bytes_of(problem.make(problem.given.recipe, decided=types))


def test_the_recipe_is_ordinary_and_gives_the_same_types(tmp_path: Path) -> None:
    found = solved(folder=tmp_path, size=100_000)
    path = tmp_path / "solved.yaml"
    path.write_text(found.recipe.text)
    recipe = load_recipe(path)
    assert not recipe.has_choice
    assert not recipe.target.is_given
    plan = make_plan(MODEL, recipe, imatrix=inputs(folder=tmp_path).imatrix)
    assert {t.name: t.type.name for t in plan.tensors} == types_of(found)
    assert len(recipe.rules) < len(tensors())


def test_the_result_is_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    given = inputs(folder=tmp_path)
    one, three = (solve_recipe(given, Target(bpw=3.1), threads=n) for n in (1, 3))
    assert one.recipe.text == three.recipe.text


@pytest.mark.parametrize("bits", [2.2, 3.3, 4.5])
def test_bits_of_a_weight_are_a_limit(tmp_path: Path, bits: float) -> None:
    found = solved(folder=tmp_path, bpw=bits)
    assert 0.97 * bits < found.plan.bits_per_weight <= bits


def test_more_than_the_types_can_use_gives_the_most_bits() -> None:
    found = solved(size=10**9)
    assert set(types_of(found).values()) == {"F32", "Q8_0"}
    assert found.solution.price == 0.0


def test_fixed_types_limits_and_shared_types_hold(tmp_path: Path) -> None:
    rules = (
        "{role: attn_q, layers: 1, type: F16}, {role: attn_output, choose: {at_least: Q5_K}},"
        " {role: ffn_down, choose: [IQ2_XXS, IQ3_S]}, {name: '*', choose: any}"
    )
    text = f"target: {{bpw: 3.6, share: [[ffn_gate, ffn_up]]}}\nrules: [{rules}]"
    found = solve_recipe(inputs(text, tmp_path), Target())
    types = types_of(found)
    assert types["blk.1.attn_q.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == "F32"
    for layer in range(N_LAYERS):
        assert ALL[types[f"blk.{layer}.attn_output.weight"]].bpw >= ALL["Q5_K"].bpw
        assert types[f"blk.{layer}.ffn_down.weight"] in ("IQ2_XXS", "IQ3_S")
        assert types[f"blk.{layer}.ffn_gate.weight"] == types[f"blk.{layer}.ffn_up.weight"]


def test_settings_of_the_recipe_are_kept(tmp_path: Path) -> None:
    text = (
        "metadata: {general.name: Mine}\neffort: fast\nfeedback: {damping: 0.3}\n"
        "rules: [{role: ffn_down, choose: any, feedback: off}, {name: '*', choose: any}]"
    )
    recipe = solved(text, tmp_path, bpw=3).recipe
    assert (recipe.metadata, recipe.effort) == ({"general.name": "Mine"}, "fast")
    assert recipe.feedback.damping == 0.3
    for name, given in assign(recipe, tensors()).assignments.items():
        assert given.feedback.use == ("off" if "ffn_down" in name else None)
        assert given.feedback.damping == 0.3


def test_rules_that_come_after_a_choice_do_not_take_its_tensors(tmp_path: Path) -> None:
    rules = "{role: ffn_down, layers: 0, choose: [Q4_K]}, {role: ffn_down, type: Q6_K}"
    found = solved(f"rules: [{rules}]", tmp_path, size=10**9)
    types = types_of(found)
    assert types["blk.0.ffn_down.weight"] == "Q4_K"
    assert types["blk.1.ffn_down.weight"] == "Q6_K"


def test_a_size_that_cannot_be_says_by_how_much_and_which_rule_stands_in_the_way() -> None:
    rules = "{role: token_embd, type: F16}, {name: '*', choose: {at_least: Q4_K}}"
    with pytest.raises(PlanError) as e:
        solved(f"rules: [{rules}]", size=50_000)
    (message,) = e.value.messages
    smallest = solved(f"rules: [{rules.replace('{at_least: Q4_K}', 'Q4_K')}]", size=10**9)
    assert message.startswith("own.yaml: no file of 50.0 kB (48.8 KiB) is possible: the smallest")
    least = smallest.file_bytes - (len(smallest.recipe.name) - len("own-50.0kB"))
    assert f"{least / 1000:.0f} kB" in message
    n_open = sum(t.n_rows for t in tensors()[1:] if len(t.shape) > 1)
    assert f"own.yaml:2 (at least Q4_K): {n_open * 144 / 1000:.0f} kB" in message
    assert f"own.yaml:2 (F16): {37 * 512 / 1000:.1f} kB" in message


def test_an_impossible_size_is_refused_before_anything_is_measured() -> None:
    measured: list[int] = []
    with pytest.raises(PlanError, match="no file of 50"):
        pose(
            inputs(),
            target=Target(size=50_000),
            progress=lambda done, _: measured.append(done),
        )
    assert not measured


@pytest.mark.parametrize(
    ("text", "asked", "expected"),
    [
        ("", {"size": 10**6}, "own.yaml: has no rule with `choose`, so that its size is fixed"),
        (ANY, {}, "own.yaml: no size is asked for; give --target-size, --target-bpw or --fit"),
        (ANY, {"fit": 50_000, "context": 9}, "50.0 kB (48.8 KiB) have no room for weights"),
    ],
)
def test_a_request_without_an_answer_is_one_error(
    text: str, asked: dict[str, Any], expected: str
) -> None:
    with pytest.raises(PlanError) as e:
        solved(text, **asked)
    (message,) = e.value.messages
    assert message.startswith(expected)


def test_a_recipe_with_choices_has_no_plan_before_it_is_solved() -> None:
    with pytest.raises(PlanError, match="`choose` leaves the type to the size of the file; give"):
        make_plan(MODEL, inputs().recipe)


def test_memory_is_the_weights_and_what_a_context_takes() -> None:
    found = solved(fit=11_000_000, context=100)
    assert found.memory == memory_of(found.plan, 100)
    assert found.memory is not None
    assert found.file_bytes + found.memory.total <= 11_000_000


def test_larger_sizes_are_expected_to_lose_less(tmp_path: Path) -> None:
    problem = pose(inputs(folder=tmp_path), target=Target())
    sizes = sizes_of(problem)
    assert len(sizes) > 10
    n_bytes, damage = [s.tensor_bytes for s in sizes], [s.damage for s in sizes]
    assert n_bytes == sorted(n_bytes)
    assert damage == sorted(damage, reverse=True)
    middle = sizes[len(sizes) // 2]
    found = solve_for(problem, Target(bpw=middle.bits_per_weight + 1e-9))
    assert found.solution.damage == pytest.approx(middle.damage, rel=1e-9)


def test_the_page_of_a_plan_shows_what_its_size_costs_and_buys(tmp_path: Path) -> None:
    problem = pose(inputs(folder=tmp_path), target=Target())
    found = solve_for(problem, Target(bpw=3))
    page = plan_html(found.plan, found.file_bytes, budget_picture(problem, found))
    assert "What 3 bpw cost and buy" in page
    for cost in roles_of(found):
        assert f"{100 * cost.damage / found.solution.damage:.1f} %" in page
    assert page.count("nearest to this plan") == 1
    assert "cost and buy" not in plan_html(found.plan, found.file_bytes)


def test_gate_and_up_share_a_type_only_where_the_rules_are_the_same(tmp_path: Path) -> None:
    rules = "{role: ffn_up, choose: {at_least: Q6_K}}, {name: '*', choose: any}"
    groups = pose(inputs(f"rules: [{rules}]", tmp_path), target=Target()).groups
    assert all(len(group.names) == 1 for group in groups)
    found = solved(folder=tmp_path, bpw=3)
    assert "# The same type in each layer: ffn_gate and ffn_up (`share`" in found.recipe.text
    assert found.recipe.description == "own, solved for 3 bpw"


@pytest.mark.parametrize("share", ["[[attn_q, attn_k]]", "[[attn_q, token_embd]]"])
def test_a_share_that_joins_nothing_is_an_error(tmp_path: Path, share: str) -> None:
    with pytest.raises(PlanError, match="joins no tensors: no layer has two of these roles"):
        solved(f"target: {{bpw: 4, share: {share}}}\n{ANY}", tmp_path)


def test_more_than_can_be_used_is_reported(tmp_path: Path) -> None:
    line = solved_line(solved(folder=tmp_path, size=10**9))
    assert line.endswith("every tensor has its best type, and the rest of the size is not used")


def test_a_number_of_bits_that_cannot_be_is_answered_in_bits() -> None:
    with pytest.raises(PlanError) as e:
        solved("rules: [{name: '*', choose: {at_least: Q4_K}}]", bpw=4)
    assert "no file of 4 bpw is possible: the smallest that the rules allow has 4.5" in str(e.value)
    assert "bits per weight; the most is taken by own.yaml:2 (at least Q4_K): " in str(e.value)
