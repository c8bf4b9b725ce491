"""Shipped recipes fit every dense model and give the size that they state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import pytest
from subsets import slow_except
from unread import Unread

from dynquant.arch.base import ModelTensor
from dynquant.recipe.assignment import Assigned
from dynquant.recipe.loader import load_recipe, shipped_recipes
from dynquant.recipe.match import assign

RECIPES = (
    "bf16",
    *(f"dynamic-{bits}bit" for bits in (2, 3, 4, 5, 6)),
    "f16",
    "f32",
    "q8_0",
)
ELSEWHERE = (
    *(f"deepseek-r1-{name}" for name in ("dq3_k_m", "iq1_m", "iq1_s", "iq2_xxs", "q2_k_xl")),
    *(f"dynamic-moe-{bits}bit" for bits in ("1.58", "2", "3")),
)
"""Recipes that are not for dense models: see test_deepseek_r1.py and test_recipe_sizes.py."""


@dataclass(frozen=True)
class Dense:
    """The sizes of a dense model like Llama."""

    hidden: int
    ffn: int
    layers: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool = False
    bias: bool = False
    head_norm: int = 0

    def tensors(self) -> list[ModelTensor]:
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocabulary, self.hidden),
            "output_norm.weight": (self.hidden,),
        }
        if not self.tied:
            shapes["output.weight"] = (self.vocabulary, self.hidden)
        for i in range(self.layers):
            blk = f"blk.{i}."
            for role, rows in {"q": self.queries, "k": self.keys, "v": self.keys}.items():
                shapes[f"{blk}attn_{role}.weight"] = (rows, self.hidden)
                if self.bias:
                    shapes[f"{blk}attn_{role}.bias"] = (rows,)
            shapes[f"{blk}attn_output.weight"] = (self.hidden, self.queries)
            shapes[f"{blk}ffn_gate.weight"] = (self.ffn, self.hidden)
            shapes[f"{blk}ffn_up.weight"] = (self.ffn, self.hidden)
            shapes[f"{blk}ffn_down.weight"] = (self.hidden, self.ffn)
            shapes[f"{blk}attn_norm.weight"] = (self.hidden,)
            shapes[f"{blk}ffn_norm.weight"] = (self.hidden,)
            if self.head_norm:
                shapes[f"{blk}attn_q_norm.weight"] = (self.head_norm,)
                shapes[f"{blk}attn_k_norm.weight"] = (self.head_norm,)
        return [ModelTensor(name, Unread(shape)) for name, shape in shapes.items()]


# Sizes from the models' config.json.
MODELS = {
    "Llama-3.1-8B": Dense(4096, 14336, 32, 4096, 1024, 128256),
    "Llama-2-7B": Dense(4096, 11008, 32, 4096, 4096, 32000),
    "Qwen3-4B": Dense(2560, 9728, 36, 4096, 1024, 151936, tied=True, head_norm=128),
    "tiny-books": Dense(256, 768, 4, 256, 128, 2048, tied=True, head_norm=64),
    "one layer": Dense(256, 512, 1, 256, 256, 64),
}
ODD_ROWS = {
    "Qwen2.5-0.5B": Dense(896, 4864, 24, 896, 128, 151936, tied=True, bias=True),
    "rows of 100": Dense(100, 300, 2, 100, 100, 50),
}


def apply(recipe: str, model: Dense) -> Assigned:
    return assign(load_recipe(recipe), model.tensors())


def bits_per_weight(recipe: str, model: Dense) -> float:
    given = apply(recipe, model).assignments
    sizes = {t.name: prod(t.shape) for t in model.tensors()}
    bits = sum(sizes[name] * a.type.bpw for name, a in given.items())
    return bits / sum(sizes.values())


def test_exactly_these_recipes_are_shipped_besides_the_mixes():
    own = [name for name, path in shipped_recipes().items() if path.parent.name == "recipes"]
    assert sorted(own) == sorted((*RECIPES, *ELSEWHERE, "budget"))


@pytest.mark.parametrize("name", RECIPES + ELSEWHERE)
def test_recipe_is_named_as_its_file_and_described(name: str):
    recipe = load_recipe(name)
    assert (recipe.name, recipe.path) == (name, f"recipes/{name}.yaml")
    assert recipe.description


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("name", slow_except(["dynamic-4bit"], RECIPES))
def test_recipe_fits_a_dense_model_without_a_warning(name: str, model: Dense):
    assert apply(name, model).warnings == ()


@pytest.mark.parametrize("model", ODD_ROWS.values(), ids=ODD_ROWS.keys())
@pytest.mark.parametrize("name", RECIPES)
def test_indivisible_rows_never_get_fewer_bits(name: str, model: Dense):
    given = apply(name, model).assignments.values()
    assert all(a.type.bpw >= a.instead_of.bpw for a in given if a.instead_of)


COUNTS = {
    ("f32", "Llama-3.1-8B"): {"F32": 291},
    ("bf16", "Llama-3.1-8B"): {"BF16": 226, "F32": 65},
    ("q8_0", "Llama-3.1-8B"): {"Q8_0": 226, "F32": 65},
    # output, token_embd, 32 attn_v; 32 attn_k, 8 ffn_down
    ("dynamic-4bit", "Llama-3.1-8B"): {"Q6_K": 34, "Q5_K": 42, "Q4_K": 150, "F32": 65},
    ("dynamic-6bit", "Llama-3.1-8B"): {"Q8_0": 42, "Q6_K": 184, "F32": 65},
    ("f32", "tiny-books"): {"F32": 46},
    ("bf16", "tiny-books"): {"BF16": 29, "F32": 17},
    ("q8_0", "tiny-books"): {"Q8_0": 29, "F32": 17},
    # token_embd, 4 attn_v; 4 attn_k, all 4 ffn_down
    ("dynamic-4bit", "tiny-books"): {"Q6_K": 5, "Q5_K": 8, "Q4_K": 16, "F32": 17},
    ("dynamic-6bit", "tiny-books"): {"Q8_0": 9, "Q6_K": 20, "F32": 17},
}


@pytest.mark.parametrize(("recipe", "model"), COUNTS)
def test_counts_of_types(recipe: str, model: str):
    given = apply(recipe, MODELS[model]).assignments.values()
    assert Counter(a.type.name for a in given) == COUNTS[recipe, model]


@pytest.mark.parametrize(
    ("recipe", "least", "most"), [("dynamic-4bit", 4.6, 4.9), ("dynamic-6bit", 6.6, 7.0)]
)
@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Llama-2-7B", "Qwen3-4B"])
def test_dynamic_recipe_has_the_stated_size(recipe: str, least: float, most: float, model: str):
    assert least <= bits_per_weight(recipe, MODELS[model]) <= most


@pytest.mark.slow
def test_tied_embedding_gets_the_bits_of_the_output_matrix():
    given = apply("dynamic-4bit", MODELS["tiny-books"]).assignments
    untied = apply("dynamic-4bit", MODELS["Llama-3.1-8B"]).assignments
    assert given["token_embd.weight"].type is untied["output.weight"].type
