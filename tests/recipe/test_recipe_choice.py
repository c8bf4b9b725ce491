"""`choose` and `target`: the types that a recipe leaves to the size of the file."""

from __future__ import annotations

import jsonschema
import pytest
import yaml
from handmade import recipe
from unread import unread

from dynquant.errors import RecipeError
from dynquant.recipe.explain import explain
from dynquant.recipe.facts import Facts, facts_of_tensors
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.resolved import resolved_text
from dynquant.recipe.schema import recipe_schema
from dynquant.recipe.target import Target

WIDE = unread("blk.0.attn_v.weight", 8, 512)
NARROW = unread("blk.0.attn_k.weight", 8, 96)


def chosen(rule: str, n_per_row: int, *, importance: bool = True) -> list[str]:
    """Return the types that a rule leaves a tensor with rows of a length."""
    tensor = unread("blk.0.attn_v.weight", 8, n_per_row)
    facts = Facts("llama", 1, importance=importance)
    text = f"default: Q4_K\nrules: [{{role: attn_v, choose: {rule}}}]"
    given = assign(parse_recipe(text, "r.yaml", "r"), [tensor], facts).assignments[tensor.name]
    return [t.name for t in given.choice]


def faults(text: str) -> list[str]:
    with pytest.raises(RecipeError) as e:
        parse_recipe(f"default: Q4_K\n{text}", "r.yaml", "r")
    return list(e.value.messages)


def test_any_is_every_usual_type_for_the_length_of_the_rows() -> None:
    assert chosen("any", 256) == [
        *("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "IQ3_S", "Q3_K", "IQ3_XXS"),
        *("Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
    ]
    assert chosen("any", 96) == ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL"]
    assert chosen("any", 24) == ["F16"]


def test_types_that_need_importance_are_left_out_without() -> None:
    assert chosen("any", 256, importance=False)[-3:] == ["IQ3_S", "Q3_K", "Q2_K"]
    assert chosen("[IQ2_XXS, Q4_K]", 256, importance=False) == ["Q4_K"]


def test_limits_are_bits_of_a_weight() -> None:
    assert chosen("{at_least: Q4_K, at_most: Q6_K}", 256) == ["Q6_K", "Q5_K", "Q4_K"]
    assert chosen("{at_least: Q4_K, at_most: Q6_K}", 96) == ["Q5_1", "Q5_0", "Q4_1", "IQ4_NL"]
    assert chosen("{at_most: IQ1_M}", 256) == ["IQ1_M", "IQ1_S"]


def test_a_list_may_name_any_type() -> None:
    assert chosen("[Q4_0, BF16, Q4_K, Q4_0]", 96) == ["BF16", "Q4_0"]
    assert chosen("Q6_K", 256) == ["Q6_K"]


def test_readers_limit_the_types() -> None:
    text = "default: Q4_K\nreaders: [candle]\nrules: [{role: attn_v, choose: any}]"
    given = assign(parse_recipe(text, "r.yaml", "r"), [WIDE], Facts("llama", 1, importance=True))
    names = {t.name for t in given.assignments[WIDE.name].choice}
    assert "Q4_K" in names
    assert not names & {"IQ2_XXS", "IQ1_S", "IQ3_S"}


def test_rows_that_no_type_of_the_list_fits_are_an_error_with_those_that_fit() -> None:
    text = "default: F16\nrules: [{role: attention, choose: [Q4_K, Q6_K]}]"
    with pytest.raises(RecipeError) as e:
        assign(parse_recipe(text, "r.yaml", "r"), [WIDE, NARROW], Facts("llama", 1))
    assert list(e.value.messages) == [
        "r.yaml:2:9: no type of `choose` ([Q4_K, Q6_K]) is for rows of 96 weights without an"
        " imatrix: blk.0.attn_k.weight; types that are: Q8_0, Q5_1, Q5_0, Q4_1, IQ4_NL"
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("choose: {at_least: Q6_K, at_most: Q4_K}", "Q6_K has more bits than Q4_K; exchange"),
        ("choose: {}", "choose is empty; add at_least or at_most"),
        ("choose: {from: Q4_K}", "unknown key 'from'"),
        ("choose: [Q4_Q]", "'Q4_Q' is not a quant type"),
        ("choose: []", "empty list"),
        ("choose: any, type: Q4_K", "type and choose in one rule; give one of them"),
        ("choose: any, fallback: Q8_0", "`fallback` and `choose` in one rule"),
    ],
)
def test_a_faulty_choice_is_one_error(rule: str, expected: str) -> None:
    (found,) = faults(f"rules: [{{role: attn_v, {rule}}}]")
    assert expected in found


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("131GB", Target(size=131 * 10**9)),
        ("900kB", Target(size=900_000)),
        ("{bpw: 2.1}", Target(bpw=2.1)),
        ("{fit: 24GiB, context: 4096}", Target(fit=24 << 30, context=4096)),
        ("{size: 5G, share: [[attn_q, attn_k]]}", Target(5 * 10**9, share=(("attn_q", "attn_k"),))),
        ("{bpw: 3, share: []}", Target(bpw=3, share=())),
    ],
)
def test_a_target_is_a_size_bits_or_memory(text: str, target: Target) -> None:
    found = parse_recipe(f"default: Q4_K\ntarget: {text}", "r.yaml", "r")
    assert found.target == target
    extended = f"{resolved_text(found)}\n"
    assert parse_recipe(extended, "r.yaml", "r").target == target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("much", "'much' is not a size"),
        ("{bpw: 0}", "'0' is not a number of bits of a weight"),
        ("{bpw: 33}", "'33' is not a number of bits of a weight"),
        ("{size: 5G, bpw: 3}", "size and bpw in one target; give one of them"),
        ("{size: 5G, context: 9}", "`context` is for `fit`; remove it"),
        ("{bpw: 3, share: attn_q}", "share must be a list of lists of roles"),
        ("{bpw: 3, share: [[attn_q]]}", "write two roles or more"),
        ("{bpw: 3, share: [[attention, attn_q]]}", "'attention' is not a single role"),
    ],
)
def test_a_faulty_target_is_one_error(text: str, expected: str) -> None:
    (found,) = faults(f"target: {text}")
    assert expected in found


def test_a_file_overrides_the_size_of_the_recipe_that_it_extends_and_keeps_the_rest() -> None:
    own, other = Target(bpw=3.0), Target(size=9, context=5, share=())
    assert own.over(other) == Target(bpw=3.0, context=5, share=())
    assert Target(context=7).over(other) == Target(size=9, context=7, share=())


def test_explain_shows_the_choice() -> None:
    found = recipe("Q4_K", "rules: [{role: attn_v, choose: {at_least: Q4_K}}]")
    steps = explain(found, WIDE, facts_of_tensors([WIDE]))
    assert [step.action for step in steps] == ["choose {at_least: Q4_K}", "Q4_K"]


def test_a_resolved_recipe_keeps_choices() -> None:
    text = (
        "default: Q4_K\nextends: dynamic-4bit\nrules:\n- {role: attn_v, choose: any}\n"
        "- {role: attn_k, choose: [Q4_K, Q5_K]}\n- {role: attn_q, choose: {at_most: Q4_K}}\n"
    )
    found = parse_recipe(resolved_text(parse_recipe(text, "r.yaml", "r")), "r.yaml", "r")
    assert [str(r.choice) for r in found.rules[:3]] == ["any", "[Q4_K, Q5_K]", "{at_most: Q4_K}"]


@pytest.mark.parametrize(
    "text",
    [
        "{target: 5GB, rules: [{role: attn_v, choose: any, feedback: off}]}",
        "{target: {fit: 8GiB, context: 10}, rules: [{role: attn_v, choose: {at_most: Q4_K}}]}",
        "{target: {bpw: 2.5, share: [[attn_q, attn_k]]}, rules: [{role: attn_v, choose: [Q4_K]}]}",
    ],
)
def test_the_schema_accepts_choices_and_targets(text: str) -> None:
    jsonschema.validate(yaml.safe_load(text) | {"default": "Q4_K"}, recipe_schema())
    parse_recipe(yaml.safe_dump(yaml.safe_load(text) | {"default": "Q4_K"}), "r.yaml", "r")


def test_the_schema_refuses_a_choice_beside_a_type() -> None:
    with pytest.raises(jsonschema.ValidationError):
        rule = {"role": "attn_v", "choose": "any", "type": "Q4_K"}
        jsonschema.validate({"default": "Q4_K", "rules": [rule]}, recipe_schema())
