"""Actions of rules besides a type (keep, drop, override), and keys about the use of a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade import model, recipe, small_plan
from imatrices import write_legacy
from predicting import plan_of, with_prediction
from unread import Unread, unread

from dynquant.arch.base import ModelTensor
from dynquant.errors import PlanError, RecipeError
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants.table import KEPT
from dynquant.recipe.loader import built_in_rules, load_recipe, parse_recipe
from dynquant.recipe.match import assign

DOWN = "blk.0.ffn_down.weight"


def types(plan: Plan) -> dict[str, str]:
    return {t.name: t.type.name for t in plan.tensors}


@pytest.fixture
def imatrix(tmp_path: Path) -> Imatrix:
    means = {t.name: np.ones(t.n_per_row, np.float32) for t in model().tensors if t.n_rows > 1}
    return read_imatrix(write_legacy(tmp_path / "m.dat", means))


def test_keep_leaves_a_tensor_in_its_stored_type() -> None:
    plan = small_plan(more="rules: [{role: ffn_down, layers: 0, keep: true}]")
    stored = plan.sources[DOWN].source.stored.name
    assert stored not in ("Q8_0", "Q4_K")
    assert types(plan)[DOWN] == stored


def test_a_dropped_tensor_is_listed_with_its_rule_and_gives_a_warning() -> None:
    plan = small_plan(more="rules: [{name: blk.0.ffn_down.weight, drop: true}]")
    assert DOWN not in types(plan)
    assert plan.ignored[DOWN] == "dropped by recipes/hand.yaml:2"
    assert any("llama.cpp does not load" in w for w in plan.warnings)


def test_drop_needs_no_override() -> None:
    plan = small_plan(more="rules: [{role: norms, drop: true}]")
    assert not [name for name in types(plan) if "norm" in name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_prediction(tmp_path_factory.mktemp("v3") / "m")


@pytest.mark.parametrize("layers", ["drop", "keep"])
def test_rule_can_drop_the_prediction_layers(folder: Path, layers: str) -> None:
    text = f"default: F16\nprediction_layers: {layers}\nrules: [{{role: mtp, drop: true}}]"
    plan = plan_of(folder, text)
    assert not [t.name for t in plan.tensors if t.name.startswith("blk.3.")]
    assert plan.keys["deepseek2.block_count"].value == 3
    assert len(plan.ignored) > 10
    why = "dropped by r.yaml:3" if layers == "keep" else "predicts further ahead; the recipe drops"
    assert all(reason.startswith(why) for reason in plan.ignored.values())


def test_part_of_the_prediction_layers_cannot_be_dropped(folder: Path) -> None:
    text = "default: F16\nprediction_layers: keep\nrules: [{role: mtp, name: '*attn*', drop: true}]"
    with pytest.raises(PlanError, match=r"^r\.yaml:3: drops only a part of the layers") as e:
        plan_of(folder, text)
    assert "blk.3.nextn.eh_proj.weight" in str(e.value)


def test_prediction_layers_can_have_other_types(folder: Path) -> None:
    text = "default: F16\nprediction_layers: keep\nrules: [{role: mtp, type: BF16}]"
    given = types(plan_of(folder, text))
    matrices = [
        n for n in given if n.startswith("blk.3.") and "norm" not in n and "gate_inp" not in n
    ]
    assert {given[n] for n in matrices if n.endswith("weight")} == {"BF16"}
    assert {given[n] for n in given if n.startswith("blk.2.attn_output")} == {"F16"}


def test_protection_is_overridden_with_a_warning() -> None:
    tensors = [unread("blk.0.ffn_gate_inp.weight", 8, 256), unread("blk.0.attn_q.weight", 8, 256)]
    text = "default: Q4_K\nrules: [{role: router, override: true, type: BF16}]"
    found = assign(parse_recipe(text, "r.yaml", "r"), tensors)
    assert found.assignments["blk.0.ffn_gate_inp.weight"].type.name == "BF16"
    assert found.warnings == (
        "r.yaml:2: overrides the protection of blk.0.ffn_gate_inp.weight (router); runtimes may"
        " reject the file or give worse answers",
    )


def test_overriding_rule_keeps_its_position() -> None:
    tensors = [unread("blk.0.ffn_gate_inp.weight", 8, 256), unread("blk.0.attn_q.weight", 8, 256)]
    text = (
        "default: Q4_K\nrules:\n  - {name: '*', type: Q8_0}\n"
        "  - {name: '*inp*', override: true, type: BF16}"
    )
    given = assign(parse_recipe(text, "r.yaml", "r"), tensors).assignments
    assert [a.type.name for a in given.values()] == ["BF16", "Q8_0"]


def test_override_does_not_apply_to_integers() -> None:
    tensors = list(model().tensors)
    text = "default: Q8_0\nrules: [{name: tid2eid.weight, override: true, type: F16}]"
    table = ModelTensor("tid2eid.weight", Unread((4, 256), KEPT["I32"]))
    with pytest.raises(RecipeError, match="applies to no tensor: all tensors that it matches"):
        assign(parse_recipe(text, "r.yaml", "r"), [*tensors, table])


def test_built_in_rules_can_be_printed() -> None:
    notes = [rule.note for rule in built_in_rules()]
    assert notes[:4] == ["one dimension", "not a weight", "norm", "router"]
    assert notes[4:6] == ["classifier", "delicate in this architecture"]
    assert notes[-1] == "small or no matrix"
    assert {rule.type.name for rule in built_in_rules() if rule.type} == {"F32"}


def test_missing_required_importance_is_refused(imatrix: Imatrix) -> None:
    wanted = recipe("Q8_0", "importance: required")
    with pytest.raises(PlanError, match=r"^recipes/hand\.yaml: needs importance"):
        make_plan(model(), wanted)
    assert make_plan(model(), wanted, imatrix=imatrix).imatrix


def test_ignored_importance_changes_nothing_and_gives_a_warning(imatrix: Imatrix) -> None:
    ignoring = recipe("Q8_0", "importance: ignored")
    plan = make_plan(model(), ignoring, imatrix=imatrix)
    assert plan.imatrix is None and not plan.importance
    assert plan.keys == make_plan(model(), ignoring).keys
    assert plan.warnings == ("recipes/hand.yaml: ignores the imatrix m.dat (importance: ignored)",)


def test_rules_can_depend_on_importance(imatrix: Imatrix) -> None:
    asking = recipe("Q8_0", "rules: [{role: ffn_down, when: {importance: true}, type: Q4_0}]")
    assert "Q4_0" not in make_plan(model(), asking).type_counts
    assert make_plan(model(), asking, imatrix=imatrix).type_counts["Q4_0"] == 2


def test_the_recipes_effort_is_the_default() -> None:
    fast = recipe("Q8_0", "effort: fast")
    assert make_plan(model(), fast).effort == "fast"
    assert make_plan(model(), fast, effort="best").effort == "best"
    assert make_plan(model(), recipe("Q8_0")).effort == "normal"


def test_recipe_for_another_architecture_gives_a_warning() -> None:
    assert make_plan(model(), recipe("Q8_0", "for: [llama, qwen3]")).warnings == ()
    assert make_plan(model(), recipe("Q8_0", "for: deepseek2")).warnings == (
        "recipes/hand.yaml: is meant for deepseek2, and the model is llama",
    )


def test_metadata_sets_keys_and_set_overrides_it() -> None:
    named = recipe("Q8_0", "metadata: {general.name: Mine, llama.block_count: 3}")
    keys = make_plan(model(), named).keys
    assert (keys["general.name"].value, keys["llama.block_count"].value) == ("Mine", 3)
    again = make_plan(model(), named, set_keys={"general.name": "Yours"}).keys
    assert again["general.name"].value == "Yours"


def test_invalid_metadata_is_refused_with_its_recipe() -> None:
    wrong = recipe("Q8_0", "metadata: {llama.block_count: many, dynquant.version: '9'}")
    with pytest.raises(PlanError) as e:
        make_plan(model(), wrong)
    assert e.value.messages == (
        "recipes/hand.yaml: metadata llama.block_count: 'many' is not a whole number, which the key"
        " needs",
        "recipes/hand.yaml: metadata dynquant.version: the plan decides this key; it cannot be set",
    )


def test_tensors_can_be_ordered_by_layer() -> None:
    names = [t.name for t in small_plan(more="output: {tensor_order: layer}").tensors]
    assert names == [
        "output_norm.weight",
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.0.ffn_down.weight",
        "blk.1.ffn_down.weight",
        "blk.1.ffn_up_exps.weight",
    ]


@pytest.mark.parametrize(
    ("size", "shards"),
    [("1GB", [(0, 6)]), ("60000", [(0, 3), (3, 4), (4, 6)]), ("1", [(i, i + 1) for i in range(6)])],
)
def test_shards_are_whole_tensors_up_to_a_size(size: str, shards: list[tuple[int, int]]) -> None:
    plan = small_plan(more=f"output: {{shard_size: {size}}}")
    assert [(s.start, s.stop) for s in plan.shards] == shards
    assert sum(s.n_bytes for s in plan.shards) == plan.data_bytes
    sizes = [sum((t.n_bytes + 31) // 32 * 32 for t in plan.tensors[a:b]) for a, b in shards]
    assert [s.n_bytes for s in plan.shards] == sizes


def test_each_type_has_its_fallback_chain() -> None:
    tensors = [unread(f"blk.0.{role}.weight", 8, 96) for role in ("attn_q", "attn_k", "ffn_up")]
    text = (
        "default: Q4_K\nrules:\n  - {role: attn_q, type: Q6_K}\n  - {role: attn_k, type: Q2_K}\n"
        "fallback: {Q6_K: [Q8_0, F16], Q2_K: Q4_0, any: Q5_0}"
    )
    given = assign(parse_recipe(text, "r.yaml", "r"), tensors).assignments
    assert [a.type.name for a in given.values()] == ["Q8_0", "Q4_0", "Q5_0"]


def test_fallback_error_applies_to_one_type_only() -> None:
    tensors = [unread(f"blk.0.{role}.weight", 8, 96) for role in ("attn_q", "attn_k")]
    text = "default: Q4_K\nrules: [{role: attn_q, type: Q6_K}]\nfallback: {Q6_K: error, any: F16}"
    with pytest.raises(RecipeError) as e:
        assign(parse_recipe(text, "r.yaml", "r"), tensors)
    (message,) = e.value.messages
    assert message.startswith("r.yaml:2:9: Q6_K's block of 256 does not divide rows of 96 weights")


def test_every_shipped_recipe_name_is_found_in_any_case() -> None:
    assert load_recipe("Q8_0").name == load_recipe("q8_0").name == "q8_0"
