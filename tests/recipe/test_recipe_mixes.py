"""The mixes of llama-quantize as recipes give every tensor the same type as llama.cpp.

The oracle is llama.cpp; its answers are in tests/references/mixes.json (tests/support/mixes.py).
"""

from __future__ import annotations

import re
from functools import cache
from math import prod

import pytest
from mixes import (
    model,
    our_types,
    packed,
    peer_needs_imatrix,
    peer_types,
    reference,
    shapes,
    unpacked,
)
from subsets import slow_except

from dynquant.errors import DynquantError, RecipeError
from dynquant.plan.make import make_plan
from dynquant.quants import ALL
from dynquant.recipe.loader import load_recipe, shipped_recipes
from dynquant.recipe.rules import Recipe

MODELS = tuple(reference()["models"])
MIXES = tuple(reference()["models"][MODELS[0]]["types"])
OURS = {"Q8_0": "q8_0", "F16": "f16"}
"""Mixes without rules, which are also recipes of dynquant."""

LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
NEEDY = (*LOW, "IQ3_XXS", "IQ3_XS", "Q2_K_S")

COUNTED = {
    "DeepSeek-V2-Lite": "ffn_down_exps:2 ffn_down_shexp:2",
    "DeepSeek-V2-Lite, attn_kv_b": "ffn_down_exps:2 ffn_down_shexp:2",
    "Qwen1.5-MoE-A2.7B": "ffn_down_exps:2 ffn_down_shexp:1-2",
    "Qwen3-Next-80B-A3B": "ffn_down_exps:3-5 ffn_down_shexp:3-5",
}
"""Tensors that LOW raises on purpose, unlike llama-quantize, in layers with two kinds of ffn_down.

The first eighth of the layers is 3, 3, 3 and 6 layers. For LOW, llama-quantize raises as many
matrices instead: in DeepSeek-V2-Lite that of layer 0 and the two of layer 1. Where 256 does not
divide the rows, the fallback replaces both types by one, or by types of the same size.
"""

MILDER = {
    "IQ2_S": {"gpt-oss-20b"},
    "IQ2_M": {"gpt-oss-20b"},
    "IQ3_XXS": {"Qwen2.5-0.5B", "gpt-oss-20b", "Falcon-7B"},
    "IQ3_XS": {"Qwen2.5-0.5B", "gpt-oss-20b", "Falcon-7B"},
}
"""Models for which llama-quantize needs no imatrix: because of the length of their rows, the
fallback replaces every type that needs one."""


@cache
def recipe(mix: str) -> Recipe:
    return load_recipe(mix)


# Without an imatrix, the mixes of NEEDY are refused; see the tests below.
CASES = [(mix, True) for mix in MIXES] + [(mix, False) for mix in MIXES if mix not in NEEDY]


@pytest.mark.slow
@pytest.mark.parametrize(("mix", "importance"), slow_except([("Q4_K_M", True)], CASES))
def test_every_tensor_has_the_type_that_llama_quantize_gives_it(mix: str, importance: bool):
    for name in MODELS:
        theirs = peer_types(name, mix, importance=importance)
        if isinstance(theirs, str):
            with pytest.raises(RecipeError, match="does not divide rows"):
                our_types(name, recipe(mix), importance=importance)
            continue
        ours = our_types(name, recipe(mix), importance=importance)
        differ = {t for t in theirs if ours[t] != theirs[t]}
        if mix in LOW and name in COUNTED:
            counted = unpacked({"": "", "raised": COUNTED[name]}, theirs)
            assert differ <= {t for t, found in counted.items() if found}, name
            assert differ and all(ALL[ours[t]].bpw >= ALL[theirs[t]].bpw for t in differ), name
        else:
            assert not differ, f"{name}: {packed({t: ours[t] for t in differ})}"


@pytest.mark.parametrize("mix", MIXES)
def test_importance_is_required_as_in_llama_quantize(mix: str):
    refusing = {name for name in MODELS if peer_needs_imatrix(name, mix)}
    required = recipe(mix).importance == "required"
    assert required == (mix in NEEDY)
    assert refusing == (set(MODELS) - MILDER.get(mix, set()) if required else set())


@pytest.mark.parametrize("mix", NEEDY)
def test_a_plan_without_an_imatrix_is_refused(mix: str):
    with pytest.raises(DynquantError, match="imatrix"):
        make_plan(model("Phi-3-mini"), recipe(mix))


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix not in ("F16", "MXFP4_MOE")])
def test_description_states_the_size_of_an_8b_model(mix: str):
    described = re.search(r"([\d.]+) bits per weight", recipe(mix).description)
    assert described
    sizes = {t.name: prod(t.shape) for t in model("Llama-3.1-8B").tensors}
    types = our_types("Llama-3.1-8B", recipe(mix), importance=True)
    bits = sum(ALL[type_].bpw * sizes[name] for name, type_ in types.items())
    assert float(described[1]) == pytest.approx(bits / sum(sizes.values()), abs=0.05)


def test_each_name_of_llama_quantize_is_a_recipe():
    folder = {name for name, path in shipped_recipes().items() if path.parent.name == "llama.cpp"}
    assert folder == set(MIXES) - OURS.keys()


@pytest.mark.parametrize("mix", MIXES)
def test_mix_is_found_by_its_name_in_any_case(mix: str):
    assert recipe(mix) == load_recipe(mix.lower())
    assert recipe(mix).name == OURS.get(mix, mix)
    assert recipe(mix).path == f"recipes/{OURS.get(mix, f'llama.cpp/{mix}')}.yaml"


@pytest.mark.parametrize("alias", ["Q3_K", "Q4_K", "Q5_K"])
def test_name_of_a_k_type_is_the_medium_mix_as_in_llama_quantize(alias: str):
    assert load_recipe(alias).name == f"{alias}_M"


def test_packed_entry_unpacks_to_the_same_types():
    types = peer_types("Llama-3.1-8B", "Q4_K_M", importance=True)
    assert isinstance(types, dict)
    assert set(types) == {name for name, _, _ in shapes("Llama-3.1-8B").named()}
    assert unpacked(packed(types), types) == types
    assert [layer for layer in range(32) if types[f"blk.{layer}.ffn_down.weight"] == "Q6_K"] == [
        *(0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31)
    ]
