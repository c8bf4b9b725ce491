"""Exported lists give the same types in llama-quantize; the oracle is the first match in Python.

As in llama-quantize, patterns are converted to lower case and searched in the unchanged name.
scripts/checks/compare_tensor_types.py compares with llama_model_quantize.
"""

from __future__ import annotations

import re

import pytest
from headers import Shapes, dense, latent_experts, tensors_of, two_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from subsets import slow_except

from dynquant.errors import RecipeError
from dynquant.interchange.items import Base
from dynquant.interchange.tensor_types import recipe_of_tensor_types, tensor_types
from dynquant.quants.table import ALL, QuantType
from dynquant.recipe.loader import load_recipe, parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.protection import protection

NAMES = ["dynamic-4bit", "dynamic-6bit", "q8_0", "Q4_K_M", "IQ2_XXS"]
R1 = latent_experts(61, 3, nope=128)


def types_by(name: str, shapes: Shapes) -> dict[str, QuantType]:
    given = assign(load_recipe(name), tensors_of(shapes)).assignments
    return {name: a.type for name, a in given.items()}


def types_in_llama_quantize(text: str, shapes: Shapes) -> dict[str, str]:
    """Return the type of each tensor that llama-quantize quantizes; `mix` if no word matches."""
    pairs = [(re.compile(w.split("=")[0].lower()), w.split("=")[1]) for w in text.split()]
    return {
        t.name: next((q.upper() for p, q in pairs if p.search(t.name)), "mix")
        for t in tensors_of(shapes)
        if not protection(t)
    }


def names(types: dict[str, QuantType], shapes: Shapes) -> dict[str, str]:
    return {t.name: types[t.name].name for t in tensors_of(shapes) if not protection(t)}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(["q8_0"], NAMES))
@pytest.mark.parametrize("shapes", [dense(32), dense(24, hidden=896, ffn=4864), R1, two_parts(6)])
def test_every_tensor_gets_its_type_from_its_first_word(name: str, shapes: Shapes) -> None:
    types = types_by(name, shapes)
    text = tensor_types(tensors_of(shapes), types)
    assert types_in_llama_quantize(text, shapes) == names(types, shapes)
    assert len(text.split()) <= len(load_recipe(name).rules) + 8
    assert re.fullmatch(r"(\^[^\s=]+\$=[a-z0-9_]+\n)+", text), "anchored words, one a line"


@pytest.mark.slow
def test_the_list_is_as_short_as_its_recipe() -> None:
    text = tensor_types(tensors_of(dense(32)), types_by("dynamic-4bit", dense(32)))
    assert text.splitlines() == [
        r"^blk\.([1-9]|[12][0-9]|30)\.(ffn_gate|ffn_up)\.weight$=q4_k",
        r"^blk\.([3-9]|1[0-9]|2[0-8])\.ffn_down\.weight$=q4_k",
        r"^(token_embd|output)\.weight$=q6_k",
        r"^blk\.[0-9]+\.attn_v\.weight$=q6_k",
        r"^blk\.[0-9]+\.(attn_k|ffn_gate|ffn_up|ffn_down)\.weight$=q5_k",
        r"^blk\.[0-9]+\.(attn_q|attn_output)\.weight$=q4_k",
    ]


@st.composite
def any_types(draw: st.DrawFn) -> tuple[Shapes, dict[str, QuantType]]:
    n_layers = draw(st.sampled_from([1, 2, 9, 13, 101, 128]))
    shapes = draw(st.sampled_from([dense(n_layers), latent_experts(n_layers, 1), two_parts(3)]))
    few = draw(st.lists(st.sampled_from(["Q4_K", "Q6_K", "Q8_0", "F16", "IQ1_S"]), min_size=1))
    seed = draw(st.randoms(use_true_random=False))
    return shapes, {
        t.name: ALL["F32"] if protection(t) else ALL[seed.choice(few)] for t in tensors_of(shapes)
    }


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(any_types())
def test_any_types_can_be_exported(model: tuple[Shapes, dict[str, QuantType]]) -> None:
    shapes, types = model
    assert types_in_llama_quantize(tensor_types(tensors_of(shapes), types), shapes) == names(
        types, shapes
    )


@pytest.mark.slow
def test_exported_list_can_be_imported() -> None:
    types = types_by("deepseek-r1-dq3_k_m", R1 | {"blk.0.attn_kv_b.weight": (512, 256)})
    del types["blk.0.attn_kv_b.weight"]
    text = tensor_types(tensors_of(R1), types)
    recipe = parse_recipe(recipe_of_tensor_types(text, "t", Base(ALL["F16"])), "r.yaml", "r")
    again = {n: a.type for n, a in assign(recipe, tensors_of(R1)).assignments.items()}
    assert again == types
    assert [rule for rule in recipe.rules if rule.match.names] == []


def test_capitals_and_signs_in_names_are_escaped() -> None:
    shapes = {f"blk.{i}.Odd role=x{{1}}+\u00e9.weight": (64, 64) for i in range(4)} | dense(4)
    types = {t.name: ALL["F32"] for t in tensors_of(shapes)}
    types |= {t.name: ALL["Q8_0"] for t in tensors_of(shapes) if not protection(t)}
    types |= {name: ALL["Q4_0"] for name in shapes if "Odd" in name}
    text = tensor_types(tensors_of(shapes), types)
    assert text == text.lower()
    assert text.isascii()
    assert types_in_llama_quantize(text, shapes) == names(types, shapes)


def test_names_that_differ_only_in_case_are_refused_if_types_differ() -> None:
    shapes: Shapes = {"blk.0.Up.weight": (64, 64), "blk.0.up.weight": (64, 64)}
    types = {"blk.0.Up.weight": ALL["Q8_0"], "blk.0.up.weight": ALL["Q4_0"]}
    with pytest.raises(RecipeError, match="and another tensor match the same pattern"):
        tensor_types(tensors_of(shapes), types)


@pytest.mark.slow
def test_tensors_that_llama_quantize_keeps_have_no_word() -> None:
    text = tensor_types(tensors_of(R1), types_by("q8_0", R1))
    for role in ("norm", "ffn_gate_inp", "bias"):
        assert role not in text


def test_router_of_shared_experts_has_a_word_if_it_is_a_matrix() -> None:
    # tensor_allows_quantization in llama-quant.cpp excludes ffn_gate_inp and vectors.
    shapes: Shapes = {
        "blk.0.ffn_gate_inp_shexp.weight": (2, 64),
        "blk.1.ffn_gate_inp_shexp.weight": (64,),
        "blk.0.ffn_up.weight": (64, 64),
    }
    text = tensor_types(tensors_of(shapes), types_by("q8_0", shapes))
    assert r"^blk\.[0-9]+\.ffn_gate_inp_shexp\.weight$=f32" in text.splitlines()


def test_types_that_llama_quantize_cannot_give_are_reported_together() -> None:
    shapes = dense(3) | {"blk.0.one_row.weight": (1, 64)}
    types = types_by("q8_0", shapes)
    types |= {"blk.1.attn_norm.weight": ALL["F16"], "blk.2.attn_norm.weight": ALL["F16"]}
    with pytest.raises(RecipeError) as e:
        tensor_types(tensors_of(shapes), types)
    assert [m.split(", but ")[0] for m in e.value.messages] == [
        "blk.{1-2}.attn_norm.weight: the recipe gives F16",
        "blk.0.one_row.weight: the recipe gives Q8_0",
    ]


def test_integers_have_no_word() -> None:
    shapes: Shapes = {"blk.0.ffn_gate_tid2eid.weight": (64, 8), "output.weight": (64, 64)}
    tensors = tensors_of(shapes, integers=["blk.0.ffn_gate_tid2eid.weight"])
    given = assign(load_recipe("q8_0"), tensors).assignments
    text = tensor_types(tensors, {n: a.type for n, a in given.items()})
    assert text == "^output\\.weight$=q8_0\n"
