"""A recipe from the types of a GGUF reproduces them, and is as short as one written by hand."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jsonschema
import mixes
import pytest
import yaml
from ggufs import add, write
from handmade import weights
from headers import Shapes, dense, latent_experts, tensors_of, two_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from subsets import slow_except

from dynquant.errors import RecipeError
from dynquant.interchange.from_gguf import recipe_of_gguf, recipe_of_types
from dynquant.quants import ALL
from dynquant.recipe.assignment import BUILT_IN
from dynquant.recipe.facts import facts_of_tensors
from dynquant.recipe.loader import load_recipe, parse_recipe, shipped_recipes
from dynquant.recipe.match import assign
from dynquant.recipe.protection import protection
from dynquant.recipe.rules import Recipe
from dynquant.recipe.schema import recipe_schema

Types = dict[str, str]
VALIDATOR = jsonschema.Draft7Validator(recipe_schema())


def types_by(recipe: Recipe, shapes: Shapes) -> Types:
    """Return the type that a recipe gives each tensor."""
    return {n: a.type.name for n, a in assign(recipe, tensors_of(shapes)).assignments.items()}


def inferred(shapes: Shapes, types: Types) -> tuple[Recipe, str]:
    """Return the recipe made from a model's types, and its text."""
    text = recipe_of_types([(n, s, types[n]) for n, s in shapes.items()], "model.gguf")
    return parse_recipe(text, "model.yaml", "model"), text


def unprotected(shapes: Shapes) -> list[str]:
    return [t.name for t in tensors_of(shapes) if not protection(t)]


def written(*rules: str, default: str = "Q4_K") -> Recipe:
    lines = [f"default: {default}", "rules:", *(f"  - {{{rule}}}" for rule in rules)]
    return parse_recipe("\n".join(lines), "written.yaml", "written")


R1 = latent_experts(61, 3, nope=128)
MOE = latent_experts(61, 3)

MODELS = {
    "dense": (dense(32), 0),
    "tied": (dense(36, tied=True), 0),
    "rows that take the fallback": (dense(24, hidden=896, ffn=4864), 0),
    "latent attention": (R1, 256),
}


FOR_EXPERTS = re.compile("-moe-|deepseek-")
"""Matches the names of recipes that need a model with experts."""

MADE = [
    (name, model)
    for name in sorted(shipped_recipes())
    for model in MODELS
    if model == "latent attention" or not FOR_EXPERTS.search(name)
]
FAST = [("dynamic-4bit", model) for model in MODELS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), slow_except(FAST, MADE))
def test_shipped_recipe_is_inferred_with_no_more_rules_than_were_used(
    name: str, model: str
) -> None:
    shapes, n_experts = MODELS[model]
    recipe = load_recipe(name)
    tensors = tensors_of(shapes)
    facts = replace(facts_of_tensors(tensors), n_experts=n_experts, importance=True)
    made = assign(recipe, tensors, facts).assignments
    types = {n: a.type.name for n, a in made.items()}
    rules = {a.rule for a in made.values()}
    used = {r for r in rules if not r.startswith(BUILT_IN) and not r.endswith("default")}
    replaced = {(a.instead_of, a.type) for a in made.values() if a.instead_of}
    again, text = inferred(shapes, types)
    assert types_by(again, shapes) == types
    assert len(again.rules) <= len(used) + len(replaced)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("mix", mixes.reference()["models"]["Llama-3.1-8B"]["types"])
def test_types_of_llama_quantize_for_published_models_fit_eight_rules(mix: str) -> None:
    """The types are the answers of llama.cpp (tests/support/mixes.py)."""
    for model in mixes.reference()["models"]:
        types = mixes.peer_types(model, mix, importance=True)
        if isinstance(types, str):
            continue
        shapes = {name: shape for name, shape, _ in mixes.shapes(model).named()}
        again, text = inferred(shapes, types)
        assert types_by(again, shapes) == types, model
        assert len(again.rules) <= 8, text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["role: experts, type: IQ2_XXS"], ["role: experts"]),
        (["role: dense_ffn, type: Q6_K"], ["role: dense_ffn"]),
        (["role: ffn, type: Q6_K"], ["role: ffn"]),
        (["role: mla, layers: 0-9, type: Q8_0"], ["role: mla", "layers: 0-9"]),
        (
            ["role: ffn_down_exps, layers: [{every: 4, from: 3}], type: Q6_K"],
            ["role: ffn_down_exps", "layers: [{every: 4, from: 3}]"],
        ),
        (["layers: 0-2, type: Q8_0"], ["layers: 0-2", "type: Q8_0"]),
    ],
)
def test_group_of_roles_is_inferred_as_one_word(rules: list[str], expected: list[str]) -> None:
    recipe = written(*rules)
    types = types_by(recipe, MOE)
    again, text = inferred(MOE, types)
    assert types_by(again, MOE) == types
    assert len(again.rules) == 1
    for line in expected:
        assert line in text


@pytest.mark.slow
def test_published_rule_of_unicom_by_position_is_inferred() -> None:
    # DQ3_K_M (arXiv 2505.02390): every fourth layer with experts has the second type.
    recipe = written(
        "role: ffn_down_exps, layers: 3-4, type: Q6_K",
        "role: ffn_down_exps, layers: [{every: 4, from: 8}], type: Q4_K",
        "role: experts, type: Q3_K",
        default="Q6_K",
    )
    types = types_by(recipe, MOE)
    again, text = inferred(MOE, types)
    assert types_by(again, MOE) == types
    assert "{every: 4, from: 8}" in text
    assert len(again.rules) <= 4


@pytest.mark.slow
def test_the_default_is_the_type_of_most_tensors() -> None:
    types = types_by(written("role: attention, type: Q6_K", default="Q5_K"), MOE)
    again, _ = inferred(MOE, types)
    ((most, _), *_) = Counter(types[n] for n in unprotected(MOE)).most_common()
    assert again.default.name == most


@st.composite
def assigned(draw: st.DrawFn) -> tuple[Shapes, Types]:
    """Draw a model in which each role has runs of types over the layers, with random exceptions."""
    n_layers = draw(st.integers(1, 24))
    shapes = draw(
        st.sampled_from(
            [
                dense(n_layers),
                latent_experts(n_layers, min(n_layers, draw(st.integers(0, 3)))),
                two_parts(n_layers),
            ]
        )
    )
    few = draw(
        st.lists(st.sampled_from(["Q4_K", "Q6_K", "IQ2_XXS", "Q8_0", "F16", "F32"]), min_size=1)
    )
    types = dict.fromkeys(shapes, "F32")
    roles: dict[str, list[str]] = {}
    for t in tensors_of(shapes):
        if not protection(t):
            roles.setdefault(t.name.replace(f".{t.parts.layer}.", ".*."), []).append(t.name)
    for names in roles.values():
        start = 0
        while start < len(names):
            stop = start + draw(st.integers(1, len(names)))
            types |= dict.fromkeys(names[start:stop], draw(st.sampled_from(few)))
            start = stop
    for name in draw(st.lists(st.sampled_from(sorted(shapes)), max_size=4)):
        if not protection(tensors_of({name: shapes[name]})[0]) or draw(st.booleans()):
            # Types whose blocks do not divide the rows are in no GGUF: its reader refuses them.
            possible = [
                n for n in ("Q5_K", "F16", *few) if shapes[name][-1] % ALL[n].block_size == 0
            ]
            types[name] = draw(st.sampled_from(possible))
    return shapes, types


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True)
@given(assigned())
def test_any_types_are_reproduced(model: tuple[Shapes, Types]) -> None:
    shapes, types = model
    again, text = inferred(shapes, types)
    assert types_by(again, shapes) == types
    assert not re.search(r"blk\\\.\d", text), "no tensor is named, whatever the types"
    assert VALIDATOR.is_valid(yaml.safe_load(text))


def test_parts_of_a_model_are_distinguished_by_name() -> None:
    shapes = two_parts(4)
    types = dict.fromkeys(shapes, "Q4_K") | dict.fromkeys((n for n in shapes if "norm" in n), "F32")
    types |= dict.fromkeys((n for n in shapes if re.fullmatch(r"enc\..*attn_q\.weight", n)), "Q6_K")
    again, text = inferred(shapes, types)
    assert types_by(again, shapes) == types
    assert "enc.blk.*.attn_q.weight" in text
    assert len(again.rules) == 1


def test_only_protected_tensors_of_another_type_are_overridden() -> None:
    shapes = dense(4)
    types = types_by(load_recipe("q8_0"), shapes)
    types["blk.2.attn_q.bias"] = types["blk.2.attn_norm.weight"] = "F16"
    again, text = inferred(shapes, types)
    assert types_by(again, shapes) == types
    assert text.count("override: true") == len(again.rules) <= 2


def test_unknown_role_is_selected_by_name() -> None:
    shapes = {f"blk.{i}.attn.weird.weight": (256, 256) for i in range(9)} | dense(9)
    types = types_by(load_recipe("q8_0"), shapes)
    types |= {f"blk.{i}.attn.weird.weight": "Q4_K" for i in range(3, 9)}
    again, text = inferred(shapes, types)
    assert types_by(again, shapes) == types
    assert r"/^blk\.\d+\.attn\.weird\.weight$/" in text


def test_integers_need_no_rule() -> None:
    shapes = {"blk.0.ffn_gate_tid2eid.weight": (64, 4), "blk.0.ffn_up.weight": (64, 64)}
    types = {"blk.0.ffn_gate_tid2eid.weight": "I32", "blk.0.ffn_up.weight": "Q8_0"}
    again, _ = inferred(shapes, types)
    assert (again.rules, again.default.name) == ((), "Q8_0")


def test_prediction_layers_are_kept_and_not_part_of_patterns() -> None:
    shapes = dense(17) | {"blk.16.nextn.eh_proj.weight": (256, 512)}
    types = types_by(load_recipe("q8_0"), shapes)
    types |= {f"blk.{i}.ffn_down.weight": "Q6_K" for i in (1, 3, 5, 7, 9, 11, 13, 15, 16)}
    tensors = [(n, s, types[n]) for n, s in shapes.items()]
    text = recipe_of_types(tensors, "model.gguf", prediction=range(16, 17))
    assert "prediction_layers: keep" in text
    assert "layers: [16, {every: 2, from: 1}]" in text


def test_unsupported_types_are_reported_together() -> None:
    tensors = [(f"blk.{i}.ffn_up.weight", (256, 256), "Q8_1") for i in range(3)]
    tensors += [("output.weight", (256, 256), "Q8_K"), ("token_embd.weight", (256, 256), "Q4_K")]
    with pytest.raises(RecipeError) as e:
        recipe_of_types(tensors, "model.gguf")
    assert [m.split(", so ")[0] for m in e.value.messages] == [
        "model.gguf: blk.{0-2}.ffn_up.weight (3 tensors): dynquant does not encode Q8_1",
        "model.gguf: output.weight (1 tensor): dynquant does not encode Q8_K",
    ]


@pytest.mark.parametrize("shards", [0, 3])
def test_all_shards_of_a_file_are_read(tmp_path: Path, shards: int) -> None:
    types = {"token_embd": "Q8_0", "blk.0.ffn_up": "Q4_0", "blk.1.ffn_up": "Q4_0", "output": "F16"}

    def fill(writer: object) -> None:
        for name, type_name in types.items():
            add(writer, f"{name}.weight", weights(4, 64), type_name)

    path = write(tmp_path / "my model.gguf", fill, split_max_tensors=shards)
    text = recipe_of_gguf(path)
    recipe = parse_recipe(text, "r.yaml", "r")
    shapes: Shapes = {f"{name}.weight": (4, 64) for name in types}
    assert types_by(recipe, shapes) == {f"{n}.weight": t for n, t in types.items()}
    first, second = text.splitlines()[:2]
    assert first == "# yaml-language-server: $schema=recipe.schema.json"
    assert second == f"# The types of {path.name}: 4 tensors, 8.375 bits per weight."
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_long_list_of_roles_has_at_most_100_columns() -> None:
    names = ("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_output", "ffn_down_exps", "ffn_up_exps")
    recipe = written(f"role: [{', '.join((*names, 'ffn_gate_shexp', 'ffn_up_shexp'))}], type: Q6_K")
    types = types_by(recipe, MOE)
    again, text = inferred(MOE, types)
    assert types_by(again, MOE) == types
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("stem", ["a\ndefault: Q4_0", "true", "4.5", "it's: #1", "\x7f", "\u4f60"])
def test_any_file_name_can_be_a_recipe_name(stem: str) -> None:
    text = recipe_of_types([("output.weight", (4, 64), "Q8_0")], f"{stem}.gguf")
    recipe = parse_recipe(text, "r", "r")
    assert (recipe.name, recipe.default.name) == (stem, "Q8_0")
    assert VALIDATOR.is_valid(yaml.safe_load(text))
