"""`not` of a rule: which tensors it excludes, in matching, messages and explanations."""

from __future__ import annotations

import re

import pytest
from headers import dense, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from unread import unread

from dynquant.arch.base import ModelTensor
from dynquant.errors import RecipeError
from dynquant.interchange.tensor_types import tensor_types
from dynquant.recipe.assignment import Assigned
from dynquant.recipe.explain import explain
from dynquant.recipe.facts import Facts, facts_of_tensors
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.protection import protection

ROLES = ("attn_q", "attn_v", "ffn_down")
TENSORS = [unread(f"blk.{i}.{role}.weight", 8, 256) for i in range(4) for role in ROLES]
NORM = unread("output_norm.weight", 256)


def parse(rule: str):
    return parse_recipe(f"default: Q4_K\nrules:\n  - {{{rule}, type: Q6_K}}\n", "r.yaml", "r")


def apply(rule: str, tensors: list[ModelTensor] = TENSORS, facts: Facts | None = None) -> Assigned:
    return assign(parse(rule), tensors, facts)


def selected(rule: str) -> list[str]:
    given = apply(rule).assignments
    return [n.removesuffix(".weight") for n, a in given.items() if a.type.name == "Q6_K"]


def refusal(rule: str, tensors: list[ModelTensor] = TENSORS) -> str:
    with pytest.raises(RecipeError) as e:
        apply(rule, tensors)
    (message,) = e.value.messages
    return message


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("role: attention, not: {role: attn_v}, layers: 0-1", ["blk.0.attn_q", "blk.1.attn_q"]),
        ("role: attn_v, not: {layers: [0, -1]}", ["blk.1.attn_v", "blk.2.attn_v"]),
        ("layers: 2, not: {name: '*attn*'}", ["blk.2.ffn_down"]),
        ("not: [{role: attention}, {layers: 0-2}]", ["blk.3.ffn_down"]),
        (
            "role: ffn_down, not: {role: ffn_down, layers: {every: 2}}",
            ["blk.1.ffn_down", "blk.3.ffn_down"],
        ),
        ("role: attn_q, layers: 0-1, not: {role: attn_v, layers: 0}, optional: true",
         ["blk.0.attn_q", "blk.1.attn_q"]),
    ],
)  # fmt: skip
def test_tensors_that_match_all_keys_of_not_are_not_selected(
    rule: str, expected: list[str]
) -> None:
    assert selected(rule) == expected


def test_excluded_tensors_go_to_the_next_rule() -> None:
    text = (
        "default: Q4_K\nrules:\n  - {role: attention, not: {layers: 0}, type: Q6_K}\n"
        "  - {role: attn_v, type: Q8_0}\n"
    )
    given = assign(parse_recipe(text, "r.yaml", "r"), TENSORS).assignments
    assert given["blk.0.attn_v.weight"].rule == "r.yaml:4"
    assert given["blk.0.attn_q.weight"].rule == "r.yaml:1 default"


def test_not_by_shape() -> None:
    odd = unread("blk.9.attn_v.weight", 8, 512)
    given = apply("role: attn_v, not: {shape: {row_multiple_of: 512}}", [*TENSORS, odd]).assignments
    assert given[odd.name].type.name == "Q4_K"
    assert given["blk.0.attn_v.weight"].type.name == "Q6_K"


@pytest.mark.parametrize(("gqa", "expected"), [(1, "Q4_K"), (4, "Q6_K")])
def test_not_with_a_condition_excludes_in_models_that_meet_it(gqa: int, expected: str) -> None:
    rule = "role: attn_v, not: {when: {gqa: 1}}, optional: true"
    given = apply(rule, facts=Facts("llama", 4, gqa=gqa)).assignments
    assert given["blk.0.attn_v.weight"].type.name == expected


@st.composite
def selectors(draw: st.DrawFn) -> dict[str, str]:
    keys = draw(st.sets(st.sampled_from(["role", "layers"]), min_size=1))
    some = {"role": st.sampled_from(ROLES), "layers": st.sampled_from(["0", "-1", "0-1", "1-"])}
    return {key: draw(some[key]) for key in sorted(keys)}


def written(found: dict[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in found.items())


@pytest.mark.slow
@settings(deadline=None, derandomize=True)
@given(selectors(), st.lists(selectors(), min_size=1, max_size=3))
def test_not_is_the_difference_of_two_selections(
    match: dict[str, str], excluded: list[dict[str, str]]
) -> None:
    """The oracle: sets of names that rules without `not` select."""
    less = set[str]().union(*(selected(written(one)) for one in excluded))
    nots = ", ".join(f"{{{written(one)}}}" for one in excluded)
    found = selected(f"{written(match)}, not: [{nots}], optional: true")
    assert set(found) == set(selected(written(match))) - less


def test_rule_whose_not_excludes_everything_is_an_error() -> None:
    assert refusal("role: attn_v, not: {role: attention}") == (
        "r.yaml:3:5: rule (role attn_v, not (role attention)) applies to no tensor: `not` excludes"
        " all tensors that it matches; correct it, or add `optional: true`"
    )
    assert apply("role: attn_v, not: {role: attention}, optional: true").warnings == ()


@pytest.mark.parametrize(
    ("excluded", "why"),
    [
        ("{role: ffn_down_exps}", "the model has no ffn_down_exps; did you mean ffn_down?"),
        ("{layers: 9}", "the model has layers 0-3"),
        ("{name: attn_v}", "no tensor has such a name (write '*attn_v*' to match all names that"
         " contain it)"),
        ("{role: ffn_down}", "the rule does not match the tensors that it names"),
    ],
)  # fmt: skip
def test_not_that_excludes_nothing_is_a_warning(excluded: str, why: str) -> None:
    (warning,) = apply(f"role: attention, not: {excluded}").warnings
    text = ", ".join(re.findall(r"\w+: \w+", excluded)).replace(":", "")
    assert warning == (
        f"r.yaml:3: `not` ({text}) excludes no tensor: {why}; correct it, or add `optional: true`"
    )
    assert apply(f"role: attention, not: {excluded}, optional: true").warnings == ()


def test_each_mapping_of_not_without_effect_is_a_warning() -> None:
    rule = "role: attention, not: [{layers: 8}, {layers: 0}, {layers: 9}]"
    assert [w.partition("(")[2][:8] for w in apply(rule).warnings] == ["layers 8", "layers 9"]


def test_not_with_an_unmet_condition_is_no_warning() -> None:
    rule = "role: attention, not: {role: ffn_down, when: {experts: '>= 1'}}"
    assert apply(rule).warnings == ()


def test_not_that_names_layers_which_the_file_leaves_out_is_no_warning() -> None:
    absent = [unread("blk.4.attn_q.weight", 8, 256)]
    facts = Facts("llama", 4, prediction=range(4, 5))
    found = assign(parse("role: attn_q, not: {layers: 4}"), TENSORS, facts, absent)
    assert found.warnings == ()


def test_explain_says_that_not_excludes_the_tensor() -> None:
    recipe = parse("role: attention, not: [{layers: 3}, {role: attn_v}]")
    step = explain(recipe, TENSORS[1], facts_of_tensors(TENSORS))[0]
    assert (step.says, step.verdict) == ("role attention, not (layers 3) (role attn_v)", "misses")
    assert step.why == "`not` (role attn_v) excludes it"


def test_not_does_not_select_protected_tensors() -> None:
    given = apply("not: {role: attn_v}", [*TENSORS, NORM]).assignments
    assert given[NORM.name].type.name == "F32"


def test_an_exported_list_has_the_types_that_not_leaves() -> None:
    tensors = tensors_of(dense(4))
    recipe = parse("role: [attention, ffn_down], not: [{role: attn_v, layers: 0}, {layers: 3}]")
    types = {n: a.type for n, a in assign(recipe, tensors).assignments.items()}
    pairs = [word.rpartition("=") for word in tensor_types(tensors, types).split()]
    for t in tensors:
        if not protection(t):
            first = next(q for p, _, q in pairs if re.search(p, t.name))
            assert first.upper() == types[t.name].name
