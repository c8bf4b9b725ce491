"""The mixes of llama-quantize as recipes: the same type for the same tensor as llama.cpp gives.

The oracle is llama.cpp itself, whose answers tests/references/mixes.json holds (tests/mixes.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from math import prod

import pytest
from mixes import numbers, peer_needs_imatrix, peer_types, ranges, reference, shapes

from dynquant.arch.base import Model, ModelTensor
from dynquant.arrays import U8
from dynquant.errors import RecipeError
from dynquant.keys import f32, u32
from dynquant.quants import ALL, QuantType
from dynquant.recipe.facts import facts_of
from dynquant.recipe.language import load_recipe, shipped_recipes
from dynquant.recipe.match import assign

MODELS = tuple(reference()["models"])
MIXES = tuple(reference()["models"][MODELS[0]]["types"])

LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
COUNTED = {
    # The first eighth is 3 layers each. llama-quantize counts the matrices called ffn_down…: in
    # sorted order those of layer 0, of layer 1 and, of layer 1, the shared experts'.
    "DeepSeek-V2-Lite": ("ffn_down_exps:2", "ffn_down_shexp:2"),
    "DeepSeek-V2-Lite, attn_kv_b": ("ffn_down_exps:2", "ffn_down_shexp:2"),
    # 3 of 24 layers, 6 of 48; two such matrices in each.
    "Qwen1.5-MoE-A2.7B": ("ffn_down_exps:2", "ffn_down_shexp:1-2"),
    "Qwen3-Next-80B-A3B": ("ffn_down_exps:3-5", "ffn_down_shexp:3-5"),
}
"""Where the recipes of LOW give more bits on purpose: the first eighth of the layers is of layers."""


@dataclass(frozen=True)
class Unread:
    """A source of which only the shape is wanted."""

    shape: tuple[int, ...]
    stored: QuantType

    def read(self, start: int, stop: int, into: U8) -> None:
        raise AssertionError(f"matching read rows {start}..{stop} into {into.shape}")


@cache
def model(name: str) -> Model:
    known = shapes(name)
    return Model(
        architecture=known.architecture,
        keys={
            f"{known.architecture}.{key}": f32(value) if isinstance(value, float) else u32(value)
            for key, value in known.keys.items()
        },
        tensors=tuple(
            ModelTensor(tensor, Unread(shape, ALL["F32" if floating else "F16"]))
            for tensor, shape, floating in known.named()
        ),
        ignored={},
    )


def our_types(name: str, mix: str, *, importance: bool) -> dict[str, str]:
    built = model(name)
    given = assign(load_recipe(mix), built.tensors, facts_of(built, importance=importance))
    return {tensor: a.type.name for tensor, a in given.assignments.items()}


def differing(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Return roles and layers of the tensors that differ."""
    layers: dict[str, list[int]] = {}
    for name in theirs:
        if ours[name] != theirs[name]:
            layer, role = re.fullmatch(r"blk\.(\d+)\.(.+)\.weight", name).groups()
            layers.setdefault(role, []).append(int(layer))
    return sorted(f"{role}:{ranges(found)}" for role, found in layers.items())


@pytest.mark.parametrize("importance", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("mix", MIXES)
def test_every_tensor_has_the_type_that_llama_quantize_gives_it(mix: str, importance: bool):
    required = load_recipe(mix).importance == "required"
    for name in MODELS:
        theirs = peer_types(name, mix, importance=importance)
        if required and not importance:
            assert peer_needs_imatrix(name, mix), name
        elif isinstance(theirs, str):
            with pytest.raises(RecipeError, match="does not divide rows"):
                our_types(name, mix, importance=importance)
        else:
            expected = list(COUNTED.get(name, ())) if mix in LOW else []
            assert differing(our_types(name, mix, importance=importance), theirs) == expected, name


@pytest.mark.parametrize("mix", MIXES)
def test_importance_is_required_where_llama_quantize_gives_up_without(mix: str):
    required = load_recipe(mix).importance == "required"
    assert [name for name in MODELS if peer_needs_imatrix(name, mix) != required] == []


@pytest.mark.parametrize("mix", LOW)
@pytest.mark.parametrize("name", COUNTED)
def test_what_differs_on_purpose_has_more_bits(name: str, mix: str):
    ours, theirs = (
        our_types(name, mix, importance=True),
        peer_types(name, mix, importance=True),
    )
    assert isinstance(theirs, dict)
    for tensor, type_ in theirs.items():
        assert ALL[ours[tensor]].bpw >= ALL[type_].bpw


@pytest.mark.parametrize("mix", MIXES)
def test_description_tells_the_size_of_an_8b_model(mix: str):
    described = re.search(r"([\d.]+) bits? per weight", load_recipe(mix).description)
    if described is None:
        assert mix in ("F16", "MXFP4_MOE")
        return
    ours = our_types("Llama-3.1-8B", mix, importance=True)
    sizes = {tensor.name: prod(tensor.shape) for tensor in model("Llama-3.1-8B").tensors}
    bits = sum(ALL[type_].bpw * sizes[name] for name, type_ in ours.items()) / sum(sizes.values())
    assert abs(float(described[1]) - bits) <= 0.051, bits


@pytest.mark.parametrize("mix", [m for m in MIXES if m not in ("Q8_0", "F16")])
def test_a_mix_is_found_by_its_name_in_any_case(mix: str):
    assert load_recipe(mix.lower()) == load_recipe(mix)
    assert shipped_recipes()[mix].parent.name == "llama.cpp"


@pytest.mark.parametrize("alias", ["Q3_K", "Q4_K", "Q5_K"])
def test_the_name_of_a_k_type_is_the_medium_mix_as_for_llama_quantize(alias: str):
    assert load_recipe(alias).name == f"{alias}_M"


def test_ranges_are_read_as_they_are_written():
    assert numbers(ranges([5, 0, 1, 2, 7, 8])) == [0, 1, 2, 5, 7, 8]
