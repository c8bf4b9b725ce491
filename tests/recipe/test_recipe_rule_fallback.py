"""The fallback of one rule: it replaces the recipe's fallback, whatever its bits."""

from __future__ import annotations

import pytest
from handmade import computed_tensor, model, recipe, shown
from unread import unread

from dynquant.arch.base import ModelTensor
from dynquant.errors import RecipeError
from dynquant.plan.make import make_plan
from dynquant.recipe.assignment import Assignment
from dynquant.recipe.explain import explain
from dynquant.recipe.facts import facts_of_tensors
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.match import assign

ODD = [unread("token_embd.weight", 8, 96), unread("blk.0.attn_v.weight", 8, 96)]
EVEN = unread("token_embd.weight", 8, 256)
BODY = "default: Q4_K\nfallback: [Q8_0]\nrules:\n  - "


def given(rule: str, tensors: list[ModelTensor] = ODD) -> dict[str, Assignment]:
    return assign(parse_recipe(f"{BODY}{{{rule}}}", "r.yaml", "r"), tensors).assignments


def faults(rule: str) -> list[str]:
    with pytest.raises(RecipeError) as e:
        parse_recipe(f"{BODY}{{{rule}}}", "r.yaml", "r")
    return list(e.value.messages)


def test_rows_that_the_type_does_not_divide_get_the_fallback_of_the_rule() -> None:
    found = given("role: embedding, type: Q6_K, fallback: Q5_1")
    assert found["token_embd.weight"].type.name == "Q5_1"
    assert (wanted := found["token_embd.weight"].instead_of) and wanted.name == "Q6_K"
    assert found["blk.0.attn_v.weight"].type.name == "Q8_0"


def test_rows_that_the_type_divides_get_the_type() -> None:
    found = given("role: embedding, type: Q6_K, fallback: Q5_1", [EVEN])
    assert (found[EVEN.name].type.name, found[EVEN.name].instead_of) == ("Q6_K", None)


def test_first_type_of_a_list_that_fits_is_used() -> None:
    tensors = [unread("token_embd.weight", 8, 50)]
    found = given("role: embedding, type: Q6_K, fallback: [Q5_1, F16]", tensors)
    assert found["token_embd.weight"].type.name == "F16"


def test_fallback_error_of_a_rule_refuses_rows_that_the_recipe_would_replace() -> None:
    with pytest.raises(RecipeError) as e:
        given("role: embedding, type: Q6_K, fallback: error")
    assert "and there is no fallback: token_embd.weight" in str(e.value)


def test_row_that_no_type_of_the_rules_fallback_divides_is_an_error() -> None:
    tensors = [unread("token_embd.weight", 8, 50)]
    with pytest.raises(RecipeError) as e:
        given("role: embedding, type: Q6_K, fallback: Q5_1", tensors)
    assert str(e.value) == (
        "r.yaml:4:5: Q6_K's block of 256 does not divide rows of 50 weights, nor does the fallback"
        " (Q5_1): token_embd.weight; add a fallback such as [F16], or choose another type"
    )


def test_types_whose_blocks_are_no_smaller_are_refused() -> None:
    assert faults("role: embedding, type: Q6_K, fallback: [Q5_K, Q5_1]") == [
        "r.yaml:4:45: the blocks of Q5_K divide no row that those of Q6_K (256 weights) do not"
        " divide; name types of smaller blocks, or remove `fallback`"
    ]
    assert "the blocks of F32" in faults("role: embedding, type: F16, fallback: F32")[0]


def test_fallback_without_a_type_is_refused() -> None:
    assert faults("role: embedding, keep: true, fallback: Q5_1") == [
        "r.yaml:4:45: `fallback` and `keep` in one rule; a fallback is for `type`"
    ]


def test_mapping_is_refused_in_a_rule() -> None:
    assert faults("role: embedding, type: Q6_K, fallback: {any: F16}") == [
        "r.yaml:4:45: the fallback of a rule is a type, a list of types or `error`, not a mapping"
    ]


def test_explain_shows_the_fallback_of_a_rule() -> None:
    text = f"{BODY}{{role: embedding, type: Q6_K, fallback: [Q5_1, F16]}}"
    rule, default = explain(parse_recipe(text, "r.yaml", "r"), ODD[0], facts_of_tensors(ODD))
    assert (rule.action, rule.fallback, default.fallback) == ("Q6_K", ("Q5_1", "F16"), None)


def test_plan_states_how_much_smaller_a_fallback_of_fewer_bits_is() -> None:
    more = "rules: [{role: token_embd, type: Q6_K, fallback: Q5_1}]"
    plan = make_plan(model(computed_tensor("token_embd.weight", 8, 96)), recipe("Q8_0", more))
    line = "fallback Q5_1 for Q6_K: 1 tensor, -0.5625 bits per weight, 54 bytes less:"
    assert line in shown(plan)
    assert not [w for w in plan.warnings if "larger" in w]


def test_fallback_of_a_rule_that_the_readers_do_not_read_is_replaced() -> None:
    text = f"{BODY}{{role: embedding, type: Q4_K, fallback: IQ4_NL}}\nreaders: [candle]"
    found = assign(parse_recipe(text, "r.yaml", "r"), ODD).assignments["token_embd.weight"]
    assert found.type.name == "Q4_1"
