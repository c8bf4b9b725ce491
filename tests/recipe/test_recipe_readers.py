"""`readers:` of a recipe: types that the named programs do not read are errors or replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from handmade import computed_tensor, model, recipe
from unread import Unread

from dynquant.arch.base import Model, ModelTensor
from dynquant.errors import RecipeError
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants.readers import READERS, unread
from dynquant.quants.table import ALL, KEPT
from dynquant.recipe.facts import facts_of
from dynquant.recipe.loader import load_recipe, parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.rules import Recipe

NARROW = (32, 64, 96)


def faults(text: str) -> list[str]:
    with pytest.raises(RecipeError) as e:
        parse_recipe(text, "r.yaml", "r")
    return list(e.value.messages)


def narrow(n_per_row: int, architecture: str = "llama") -> Model:
    roles = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names = ["token_embd.weight", "output.weight"]
    names += [f"blk.{i}.{role}.weight" for i in range(4) for role in roles]
    made = model(*(computed_tensor(name, 8, n_per_row) for name in names))
    return replace(made, architecture=architecture)


def types_by_role(plan: Plan) -> dict[str, str]:
    return {t.name.split(".")[-2]: t.type.name for t in plan.tensors}


def extended(parent: str, more: str) -> Recipe:
    return parse_recipe(f"extends: {parent}\n{more}", "recipes/hand.yaml", "hand")


def test_unknown_reader_is_a_fault_with_its_place_and_the_nearest_name() -> None:
    (message,) = faults("default: Q4_K\nreaders: [candle, mistralrs]")
    assert message.startswith("r.yaml:2:19: 'mistralrs' is not a reader; did you mean mistral.rs?")


def test_types_that_readers_do_not_read_are_faults_of_the_rules_that_name_them() -> None:
    text = (
        "default: IQ4_XS\nreaders: [llama.cpp, candle]\nrules:\n"
        "  - {role: attn_v, type: Q6_K}\n  - {role: ffn_down, type: NVFP4}\n"
    )
    assert faults(text) == [
        "r.yaml:1:10: candle does not read IQ4_XS; use Q4_K, or remove it from `readers`",
        "r.yaml:5:5: candle does not read NVFP4; use Q4_K, or remove it from `readers`",
    ]


def test_several_readers_without_a_type_are_named_together() -> None:
    (message,) = faults("default: NVFP4\nreaders: [vLLM, mistral.rs, candle]")
    assert message.startswith("r.yaml:1:10: vLLM, mistral.rs, candle do not read NVFP4; use Q4_K")
    (message,) = faults("default: IQ3_S\nreaders: [mistral.rs, candle]")
    assert message.endswith(
        "mistral.rs and candle do not read IQ3_S; use Q3_K, or remove them from `readers`"
    )


def test_readers_are_inherited_and_replaced(tmp_path: Path) -> None:
    parent = tmp_path / "parent.yaml"
    parent.write_text("default: Q4_K\nreaders: candle\n")
    own = tmp_path / "own.yaml"
    own.write_text("extends: parent.yaml\nreaders: [vLLM]\n")
    heir = tmp_path / "heir.yaml"
    heir.write_text("extends: parent.yaml\nname: heir\n")
    assert load_recipe(own).readers == ("vLLM",)
    assert load_recipe(heir).readers == ("candle",)
    heir.write_text("extends: parent.yaml\nrules: [{role: ffn_down, type: IQ4_NL}]\n")
    with pytest.raises(RecipeError, match="candle does not read IQ4_NL; use Q4_K"):
        load_recipe(heir)


@pytest.mark.parametrize("n_per_row", NARROW)
@pytest.mark.parametrize("name", ["dynamic-4bit", "dynamic-5bit", "dynamic-6bit"])
def test_dynamic_recipe_for_candle_and_mistral_has_only_types_that_they_read(
    name: str, n_per_row: int
) -> None:
    plan = make_plan(narrow(n_per_row), extended(name, "readers: [mistral.rs, candle]"))
    missing = unread(plan.type_counts, "llama")
    assert missing["candle"] == missing["mistral.rs"] == ()


@pytest.mark.slow
@pytest.mark.parametrize("n_per_row", NARROW)
def test_without_readers_nothing_changes(n_per_row: int) -> None:
    plain = make_plan(narrow(n_per_row), load_recipe("dynamic-4bit"))
    assert "IQ4_NL" in plain.type_counts
    asked = make_plan(narrow(n_per_row), extended("dynamic-4bit", "readers: [llama.cpp, vLLM]"))
    assert [(t.name, t.type) for t in asked.tensors] == [(t.name, t.type) for t in plain.tensors]


def test_fallback_that_is_read_stays_and_another_is_replaced() -> None:
    plan = make_plan(narrow(96), extended("dynamic-4bit", "readers: candle"))
    found = types_by_role(plan)
    # dynamic-4bit gives Q4_K with the fallback IQ4_NL, and Q5_K with Q5_1.
    assert (found["attn_q"], found["ffn_down"]) == ("Q4_1", "Q5_1")
    (warning,) = [w for w in plan.warnings if "fallback types" in w]
    assert "Q4_1 for Q4_K in rows of 96 (+0.5 bits per weight" in warning


def test_rows_without_a_fallback_are_an_error_that_proposes_types_the_readers_read() -> None:
    with pytest.raises(RecipeError) as e:
        make_plan(narrow(96), recipe("Q4_K", "readers: candle"))
    (message,) = e.value.messages
    assert "add a fallback such as [Q5_0, Q8_0, F16]" in message


def test_inherited_types_that_are_not_read_are_errors_with_the_tensors() -> None:
    asked = extended("dynamic-2bit", "readers: candle")
    with pytest.raises(RecipeError) as e:
        assign(asked, narrow(256).tensors, facts_of(narrow(256), importance=True))
    assert any(
        "candle does not read IQ2_XS; add a rule that gives Q2_K, or remove it from `readers`: blk."
        in m
        for m in e.value.messages
    )
    assert all(m.startswith("recipes/dynamic-2bit.yaml:") for m in e.value.messages)


def test_an_inherited_rule_that_decides_nothing_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(
        "default: Q4_K\nrules: [{role: ffn_down, type: IQ4_XS}]\n"
    )
    (tmp_path / "own.yaml").write_text(
        "extends: parent.yaml\nreaders: candle\nrules: [{role: ffn_down, type: Q4_K}]\n"
    )
    assert make_plan(narrow(256), load_recipe(tmp_path / "own.yaml")).type_counts == {"Q4_K": 30}


def test_kept_types_that_are_not_read_are_errors() -> None:
    stored = ModelTensor("blk.0.ffn_up.weight", Unread((4, 256), ALL["IQ4_XS"]))
    table = ModelTensor("blk.0.ffn_gate_tid2eid.weight", Unread((4, 8), KEPT["I32"]))
    text = "default: Q4_K\nreaders: candle\nrules: [{role: ffn_up, keep: true}]"
    with pytest.raises(RecipeError) as e:
        assign(parse_recipe(text, "r.yaml", "r"), [stored, table])
    assert list(e.value.messages) == [
        "r.yaml:3:9: candle does not read IQ4_XS; use Q4_K, or remove it from `readers`:"
        " blk.0.ffn_up.weight",
        "r.yaml: candle does not read I32, which tensors of this type keep; remove it from"
        " `readers`: blk.0.ffn_gate_tid2eid.weight",
    ]


@pytest.mark.parametrize(("architecture", "fits"), [("gpt-oss", True), ("llama", False)])
def test_a_type_that_is_read_for_one_architecture_depends_on_the_model(
    architecture: str, fits: bool
) -> None:
    asked = recipe("MXFP4", "readers: mistral.rs")
    made = narrow(64, architecture)
    if fits:
        assert assign(asked, made.tensors, facts_of(made)).warnings == ()
        return
    with pytest.raises(RecipeError, match=r"mistral\.rs does not read MXFP4; use Q4_K"):
        assign(asked, made.tensors, facts_of(made))


def test_a_reader_that_does_not_load_the_architecture_is_a_warning() -> None:
    made = narrow(256, "deepseek2")
    asked = recipe("Q4_K", "readers: [candle, mistral.rs, transformers]")
    given = assign(asked, made.tensors, facts_of(made))
    assert given.warnings == (
        "recipes/hand.yaml: candle and transformers do not load deepseek2 models",
    )


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_can_be_asked(reader: str) -> None:
    plan = make_plan(narrow(64), extended("dynamic-4bit", f"readers: {reader}"))
    assert unread(plan.type_counts, "llama")[reader] == ()
