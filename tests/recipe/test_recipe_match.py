"""Matching of rules and tensors: equal to a naive matcher, with every refusal and warning."""

from __future__ import annotations

import re

import pytest
from counting import calls_of
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from unread import Unread

from dynquant.arch.base import ModelTensor
from dynquant.errors import RecipeError
from dynquant.recipe.assignment import Assigned
from dynquant.recipe.loader import load_recipe, parse_recipe
from dynquant.recipe.match import assign


def model(n_layers: int = 4, n_per_row: int = 256) -> list[ModelTensor]:
    names = ["token_embd.weight", "output.weight"]
    for i in range(n_layers):
        names += [f"blk.{i}.{role}.weight" for role in ("attn_q", "attn_v", "ffn_up", "ffn_down")]
    matrices = [ModelTensor(name, Unread((8, n_per_row))) for name in names]
    return [*matrices, ModelTensor("output_norm.weight", Unread((n_per_row,)))]


def apply(text: str, tensors: list[ModelTensor] | None = None) -> Assigned:
    return assign(parse_recipe(text, "r.yaml", "r"), model() if tensors is None else tensors)


def refusal(text: str, tensors: list[ModelTensor] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as e:
        apply(text, tensors)
    return list(e.value.messages)


def rules(*each: str) -> str:
    return "default: Q4_K\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in each)


@st.composite
def written_rules(draw: st.DrawFn) -> tuple[list[dict[str, str | list[str]]], int]:
    some = {
        "role": ["attn_q", "attn_v", "ffn_up", "ffn_down", "token_embd", "output"],
        "layers": ["0", "2", "-1", "-3", "0-1", "1-9", "-4--2", "1--1", "-2-3"],
        "name": ["'*'", "'*.attn_?.*'", "blk.[12].*", "/ffn/", r"'/^blk\.\d\./'", "'/t$/'"],
    }
    types = st.sampled_from(["Q8_0", "Q6_K", "Q5_K", "IQ4_NL", "Q4_0", "F16"])
    each: list[dict[str, str | list[str]]] = []
    for _ in range(draw(st.integers(0, 6))):
        keys = draw(st.sets(st.sampled_from(sorted(some)), min_size=1))
        rule: dict[str, str | list[str]] = {
            key: draw(st.lists(st.sampled_from(some[key]), min_size=1, max_size=3))
            for key in sorted(keys)
        }
        each.append({**rule, "type": draw(types)})
    return each, draw(st.integers(1, 6))


def naive_type(name: str, rules: list[dict[str, str | list[str]]], n_layers: int) -> str:
    """Return the type of a tensor by brute force: layer sets enumerated, globs written by hand."""
    words = name.split(".")
    role, layer = (words[2], int(words[1])) if words[0] == "blk" else (words[0], None)
    for rule in rules:
        fits = True
        if "role" in rule:
            fits = role in rule["role"]
        if "layers" in rule:
            wanted: set[int | None] = set()
            for text in rule["layers"]:
                found = re.fullmatch(r"(-?\d+)(-(-?\d+))?", text)
                assert found
                ends = [int(found[1]), int(found[3] or found[1])]
                first, last = (end if end >= 0 else n_layers + end for end in ends)
                wanted |= set(range(first, last + 1))
            fits = fits and layer in wanted
        if "name" in rule:
            globs = {
                "'*'": True,
                "'*.attn_?.*'": ".attn_" in name and role[5:] in ("q", "v"),
                "blk.[12].*": name.startswith(("blk.1.", "blk.2.")),
                "/ffn/": "ffn" in name,
                r"'/^blk\.\d\./'": layer is not None and layer < 10,
                "'/t$/'": True,
            }
            fits = fits and any(globs[pattern] for pattern in rule["name"])
        if fits:
            assert isinstance(rule["type"], str)
            return rule["type"]
    return "Q4_K"


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(written_rules())
def test_types_equal_those_of_a_naive_matcher(
    written: tuple[list[dict[str, str | list[str]]], int],
):
    written_as, n_layers = written
    text = "default: Q4_K\nrules: [" + ", ".join(
        "{optional: true, "
        + ", ".join(
            f"{key}: {value if isinstance(value, str) else '[' + ', '.join(value) + ']'}"
            for key, value in rule.items()
        ).replace("blk.[12].*", "'blk.[12].*'")
        + "}"
        for rule in written_as
    )
    tensors = model(n_layers)
    assigned = apply(text + "]", tensors).assignments
    assert {name: given.type.name for name, given in assigned.items()} == {
        t.name: naive_type(t.name, written_as, n_layers) if len(t.shape) > 1 else "F32"
        for t in tensors
    }


def test_first_matching_rule_decides_and_is_named():
    given = apply(rules("role: ffn_down, layers: 0, type: Q6_K", "role: ffn_down, type: Q5_K"))
    first = given.assignments["blk.0.ffn_down.weight"]
    second = given.assignments["blk.1.ffn_down.weight"]
    assert (first.type.name, first.rule) == ("Q6_K", "r.yaml:3")
    assert (second.type.name, second.rule) == ("Q5_K", "r.yaml:4")


def test_tensors_without_a_rule_get_the_default():
    given = apply(rules("role: ffn_down, type: Q6_K")).assignments["blk.0.attn_q.weight"]
    assert (given.type.name, given.rule) == ("Q4_K", "r.yaml:1 default")


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("blk.0.attn_norm.weight", (256,), "one dimension"),
        ("blk.0.attn_q.bias", (256,), "one dimension"),
        ("rope_freqs.weight", (64,), "one dimension"),
        ("blk.0.attn_rot.scale", (8, 256), "not a weight"),
        ("blk.0.attn_q_norm.weight", (8, 256), "norm"),
        ("blk.0.ffn_gate_inp.weight", (8, 256), "router"),
        ("blk.0.ssm_conv1d.weight", (64, 4), "small or no matrix"),
        ("blk.0.time_mix_lerp_fused.weight", (5, 1, 1, 256), "small or no matrix"),
        ("enc.blk.0.attn_rel_b.weight", (32, 8), "small or no matrix"),
        ("v.patch_embd.weight", (64, 3, 14, 14), "small or no matrix"),
        ("position_embd.weight", (64, 256), "small or no matrix"),
        ("per_layer_model_proj.weight", (64, 256), "small or no matrix"),
        ("token_types.weight", (2, 256), "small or no matrix"),
    ],
)
def test_protected_tensor_is_f32_despite_rules(name: str, shape: tuple[int, ...], why: str):
    tensors = [*model(), ModelTensor(name, Unread(shape))]
    given = apply(rules("name: '*', type: Q6_K"), tensors).assignments[name]
    assert (given.type.name, given.rule) == ("F32", f"built-in: {why}")


@pytest.mark.parametrize("part", ["enc", "dec", "v", "a"])
def test_layers_of_model_parts_are_selected_by_number(part: str) -> None:
    tensor = ModelTensor(f"{part}.blk.1.ffn_down.weight", Unread((8, 256)))
    given = apply(rules("role: ffn_down, layers: 1, type: Q6_K"), [tensor]).assignments[tensor.name]
    assert given.type.name == "Q6_K"


IDLE = {
    "role": (
        "role: ffn_down_exps, type: Q6_K",
        "rule (role ffn_down_exps) applies to no tensor: the model has no ffn_down_exps; did you"
        " mean ffn_down?",
    ),
    "roles": (
        "role: [attn_k_b, attn_v_b], type: Q6_K",
        "rule (role attn_k_b attn_v_b) applies to no tensor: the model has no attn_k_b or attn_v_b",
    ),
    "layers": (
        "layers: [4-9, -9--5], type: Q6_K",
        "rule (layers 4-9 -9--5) applies to no tensor: the model has layers 0-3",
    ),
    "name": (
        "name: ffn_down, type: Q6_K",
        "rule (name ffn_down) applies to no tensor: no tensor has such a name (write"
        " '*ffn_down*' to match all names that contain it)",
    ),
    "together": (
        "role: output, layers: 0, type: Q6_K",
        "rule (role output, layers 0) applies to no tensor: each selector matches some"
        " tensors, but no tensor matches all of them",
    ),
    "protected": (
        "role: output_norm, type: Q6_K",
        "rule (role output_norm) applies to no tensor: all tensors that it matches are"
        " protected (one dimension); add `override: true` to change them",
    ),
}


@pytest.mark.parametrize(("rule", "message"), IDLE.values(), ids=IDLE.keys())
def test_rule_without_tensors_is_an_error_with_the_reason(rule: str, message: str):
    remedy = "" if "override" in message else "; correct it, or add `optional: true`"
    assert refusal(rules(rule)) == [f"r.yaml:3:5: {message}{remedy}"]


@pytest.mark.parametrize("rule", [rule for rule, _ in IDLE.values()], ids=IDLE.keys())
def test_optional_rule_may_apply_to_no_tensor(rule: str):
    assert apply(rules(rule + ", optional: true")).warnings == ()


def test_shadowed_rule_is_a_warning_that_names_the_earlier_rules():
    text = rules(
        "role: ffn_down, layers: 0-1, type: Q6_K",
        "layers: 2--1, type: Q5_K",
        "role: ffn_down, type: Q8_0",
    )
    assert apply(text).warnings == (
        "r.yaml:5: rule (role ffn_down) applies to no tensor: earlier rules (r.yaml:3, r.yaml:4)"
        " decide all tensors that it matches",
    )


def test_idle_rules_and_indivisible_rows_are_reported_together():
    text = rules("role: attn_k, type: Q6_K", "layers: 7, type: Q6_K", "role: output, type: Q8_0")
    assert [m.split(" ")[0] for m in refusal(text, model(4, 100))] == [
        "r.yaml:3:5:",
        "r.yaml:4:5:",
        "r.yaml:1:10:",
        "r.yaml:5:5:",
    ]


def test_indivisible_row_without_a_fallback_is_an_error():
    assert refusal("default: Q4_K", model(1, 96)) == [
        "r.yaml:1:10: Q4_K's block of 256 does not divide rows of 96 weights, and there is no"
        " fallback: token_embd.weight and 5 more; add a fallback such as [IQ4_NL, Q8_0, F16], or"
        " choose another type"
    ]


def test_row_that_no_fallback_divides_is_an_error():
    assert refusal("default: Q4_K\nfallback: [Q5_K, Q8_0]", [model(1, 100)[0]]) == [
        "r.yaml:1:10: Q4_K's block of 256 does not divide rows of 100 weights, nor does the"
        " fallback (Q5_K, Q8_0): token_embd.weight; add a fallback such as [F16], or choose"
        " another type"
    ]


def test_fallback_skips_types_with_fewer_bits():
    text = "default: Q6_K\nfallback: [IQ4_NL, Q8_0]"
    assert {a.type.name for a in apply(text, model(1, 96)).assignments.values()} == {"F32", "Q8_0"}


@pytest.mark.slow
@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["Q6_K", "Q8_0", "IQ4_NL", "F16"]), min_size=1, max_size=4),
    st.integers(1, 1024),
)
def test_first_fallback_whose_block_divides_the_row_is_used(chain: list[str], n: int):
    block = {name: GGML_QUANT_SIZES[GGMLQuantizationType[name]][0] for name in ("Q4_K", *chain)}
    expected = next((name for name in ("Q4_K", *chain) if n % block[name] == 0), None)
    tensors = [ModelTensor("output.weight", Unread((2, n)))]
    text = f"default: Q4_K\nfallback: [{', '.join(chain)}]"
    if expected is None:
        assert refusal(text, tensors)
        return
    given = apply(text, tensors).assignments["output.weight"]
    assert given.type.name == expected
    assert (given.instead_of is None) == (expected == "Q4_K")


def test_fallbacks_that_cost_bytes_are_one_warning() -> None:
    given = apply("default: Q4_K\nfallback: [Q8_0, F16]", model(1, 96))
    (warning,) = given.warnings
    assert warning.startswith("r.yaml: fallback types make the file ")
    assert "Q8_0 for Q4_K in rows of 96 (+4 bits per weight, " in warning
    assert "token_embd.weight and 5 more" in warning
    assert "extend the recipe with rules" in warning


def test_fallbacks_that_cost_nothing_are_no_warning() -> None:
    assert apply("default: Q4_K\nfallback: [IQ4_NL, F16]", model(1, 96)).warnings == ()


def test_a_fallback_with_fewer_bits_is_named_as_such() -> None:
    (message,) = refusal("default: Q6_K\nfallback: [IQ4_NL]", model(1, 96)[:1])
    assert "the types of the fallback have fewer bits (IQ4_NL)" in message
    assert "add a fallback such as [Q8_0, F16]" in message


def test_matching_recipe_gives_no_warning():
    assert apply(rules("role: ffn_down, layers: [0-3, -4--1], type: Q6_K")).warnings == ()


@pytest.mark.slow
def test_matching_takes_less_than_ten_calls_per_tensor_and_rule():
    each = [f"name: '/^blk.{i}.ffn/', type: Q6_K" for i in range(100)]
    recipe = parse_recipe(rules(*each), "r.yaml", "r")
    tensors = model(250)
    assert calls_of(lambda: assign(recipe, tensors)) < 10 * len(tensors) * len(each)


def test_an_open_range_ends_with_the_last_layer() -> None:
    given = apply(rules("role: ffn_down, layers: [2-], type: Q6_K"), model(5)).assignments
    taken = {n for n, a in given.items() if a.type.name == "Q6_K"}
    assert taken == {f"blk.{i}.ffn_down.weight" for i in (2, 3, 4)}


def test_a_glob_of_roles_selects_all_that_match() -> None:
    given = apply(rules("role: attn_*, type: Q6_K"), model(2)).assignments
    taken = {n.split(".")[2] for n, a in given.items() if a.type.name == "Q6_K"}
    assert taken == {n.split(".")[2] for n in given if ".attn_" in n and "norm" not in n}
    (message,) = refusal(rules("role: atn_*, type: Q6_K"))
    assert "'atn_*' matches no role" in message


def test_a_mapping_is_a_recipe() -> None:
    made = load_recipe({"default": "Q4_K", "rules": [{"role": "attn_v", "type": "Q6_K"}]})
    assert (made.default.name, len(made.rules)) == ("Q4_K", 1)
    with pytest.raises(RecipeError, match="'q4km' is not a quant type"):
        load_recipe({"default": "q4km"})
