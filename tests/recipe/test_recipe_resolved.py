"""A recipe and those that it extends as one file: the same rules, types and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from every_key import EVERY_KEY
from headers import dense, latent_experts, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from subsets import slow_except
from typer.testing import CliRunner

from dynquant.cli import app
from dynquant.errors import RecipeError
from dynquant.recipe import resolved
from dynquant.recipe.loader import load_recipe, parse_recipe, recipe_of_texts, shipped_recipes
from dynquant.recipe.match import assign
from dynquant.recipe.resolved import resolved_text
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.schema import recipe_schema

EXTENDING = [name for name in shipped_recipes() if load_recipe(name).texts]
VALIDATOR = Draft7Validator(recipe_schema())


def without_places(rules: tuple[Rule, ...]) -> list[Rule]:
    """Return rules without their places; an inherited rule is optional in one file."""
    place = load_recipe("f16").default_place
    return [
        replace(r, place=place, inherited=False, optional=r.optional or r.inherited) for r in rules
    ]


def same(a: Recipe, b: Recipe) -> None:
    assert without_places(a.rules) == without_places(b.rules)
    place, more = a.default_place, {"path": "", "text": "", "texts": (), "rules": ()}
    assert replace(a, default_place=place, **more) == replace(b, default_place=place, **more)


def resolve(text: str, folder: Path) -> tuple[Recipe, str]:
    (folder / "r.yaml").write_text(text)
    recipe = load_recipe(folder / "r.yaml")
    return recipe, resolved_text(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(EXTENDING[:2], EXTENDING))
def test_shipped_recipes_are_the_same_in_one_file(name: str) -> None:
    recipe = load_recipe(name)
    text = resolved_text(recipe)
    same(recipe, parse_recipe(text, "one.yaml", "one"))
    assert [e.message for e in VALIDATOR.iter_errors(yaml.safe_load(text))] == []


def test_recipe_that_extends_none_keeps_its_text() -> None:
    assert resolved_text(load_recipe("dynamic-4bit")) == load_recipe("dynamic-4bit").text


def test_every_key_of_the_language_is_kept(tmp_path: Path) -> None:
    (tmp_path / "every.yaml").write_text(EVERY_KEY)
    recipe, text = resolve("extends: every.yaml\nname: 'no: #'", tmp_path)
    read = parse_recipe(text, "one.yaml", "one")
    same(recipe, read)
    assert read.name == "no: #"
    assert read.rules[0].place.path == "one.yaml"
    assert VALIDATOR.is_valid(yaml.safe_load(text))


@pytest.mark.parametrize(
    "rule",
    [
        "{role: attn_v, layers: [10-, 12.345678%-99.999999%, -4--1], type: Q6_K}",
        "{not: {when: {tied_embeddings: false, importance: true}}, type: Q6_K}",
        "{role: attn_v, type: Q6_K, fallback: error, note: 'a: b # c'}",
        '{role: attn_v, type: Q6_K, note: "two\\nlines and \\u0007 \\u00e9"}',
        "{name: ['/^\\d+ ?x$/', '[ab]*', 'no', '1.0'], type: Q6_K, override: true}",
        "{when: {layers: ['!= 3', 4, '< 9'], experts: 0}, keep: true}",
        "{role: attn_v, type: Q6_K, feedback: off}",
        "{role: attn_v, type: Q6_K, feedback: {damping: 1.0e-1, sweeps: 0}}",
    ],
)
def test_rules_are_kept_exactly(rule: str, tmp_path: Path) -> None:
    recipe, text = resolve(f"extends: q8_0\nrules:\n  - {rule}\n  - {rule}", tmp_path)
    same(recipe, parse_recipe(text, "one.yaml", "one"))


@pytest.mark.parametrize(
    "keys",
    [
        "fallback: {Q4_K: error, any: F16}",
        "fallback: {Q4_K: [IQ4_NL, F16]}",
        "fallback: error",
        "output: {shard_size: 46.5GiB}",
        "metadata: {general.name: 'yes', a.b: 3, c.d: '[x'}",
        "for: [llama, qwen3]\nprediction_layers: keep\neffort: best\nimportance: ignored",
        "feedback: off",
        "feedback: {use: required, damping: 0.01, sweeps: 8}",
        "description: 'a:\n\n  b'",
    ],
)
def test_settings_are_kept_exactly(keys: str, tmp_path: Path) -> None:
    recipe, text = resolve(f"extends: dynamic-4bit\n{keys}", tmp_path)
    same(recipe, parse_recipe(text, "one.yaml", "one"))


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.text(min_size=1), st.text(), st.text())
def test_any_text_is_kept(name: str, note: str, value: str) -> None:
    rule: Any = {"role": "attn_v", "type": "Q6_K", "note": note or "x"}
    own = {"extends": "x", "name": name, "metadata": {"a": value or "x"}, "rules": [rule]}
    try:
        text = yaml.safe_dump(own, allow_unicode=False)
        recipe = recipe_of_texts([text, "default: Q4_K"], name)
    except (RecipeError, UnicodeEncodeError):
        return
    same(recipe, parse_recipe(resolved_text(recipe), "one.yaml", "one"))


@pytest.mark.slow
def test_types_are_the_same_beside_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: dynamic-4bit\nrules: [{role: ffn_up, type: Q5_K}]")
    (tmp_path / "b.yaml").write_text(
        "extends: dynamic-4bit\ndefault: Q5_K\nrules: [{role: attn_v_b, type: Q8_0}]"
    )
    recipe, text = resolve("extends: [a.yaml, b.yaml]", tmp_path)
    one = parse_recipe(text, "one.yaml", "one")
    for shapes in (dense(8), latent_experts(8, 3, nope=128)):
        tensors = tensors_of(shapes)
        found = [assign(r, tensors).assignments for r in (recipe, one)]
        types = [{n: (a.type, a.instead_of) for n, a in each.items()} for each in found]
        assert types[0] == types[1]


def test_recipe_of_texts_equals_that_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("default: Q4_K\nrules: [{role: ffn_up, type: Q5_K}]")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\neffort: best")
    recipe, _ = resolve("extends: [a.yaml, b.yaml]\nname: mine", tmp_path)
    read = recipe_of_texts([recipe.text, *recipe.texts], "mine")
    same(recipe, read)
    assert read.sha256 == recipe.sha256


def test_comments_name_the_files_without_their_folders(tmp_path: Path) -> None:
    _, text = resolve("extends: Q4_K_M\nrules: [{role: ffn_up, type: Q5_K}]", tmp_path)
    assert "  # of r.yaml\n  - role: ffn_up\n    type: Q5_K\n" in text
    assert "  # of Q4_K_M.yaml\n" in text
    assert str(tmp_path) not in text


def test_recipe_that_is_too_large_as_one_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolved, "MAX_BYTES", 100)
    with pytest.raises(RecipeError) as e:
        resolve("extends: dynamic-4bit\ndefault: Q5_K", tmp_path)
    assert "bytes as one file, and a recipe has at most 100" in str(e.value)


def test_faults_of_texts_are_reported_together() -> None:
    with pytest.raises(RecipeError) as e:
        recipe_of_texts(["extends: a\neffort: x", "default: Q4_X"], "mine")
    assert [m.partition(": ")[0] for m in e.value.messages] == ["mine:2:9", "mine, extended 1:1:10"]
    with pytest.raises(RecipeError, match="mine: no default"):
        recipe_of_texts(["extends: a", "extends: b"], "mine")
    with pytest.raises(RecipeError, match="extends 64 recipes; at most 63 can"):
        recipe_of_texts(["default: Q4_K"] * 65, "mine")


@pytest.mark.slow
def test_resolve_prints_and_writes_the_file(tmp_path: Path) -> None:
    recipe, text = resolve("extends: Q4_K_M", tmp_path)
    command = ["recipe", "resolve", str(tmp_path / "r.yaml")]
    assert CliRunner().invoke(app, command).stdout == text
    out = tmp_path / "one.yaml"
    assert CliRunner().invoke(app, [*command, "-o", str(out)]).exit_code == 0
    same(recipe, load_recipe(out))
    assert CliRunner().invoke(app, [*command, "-o", str(out)]).exit_code == 1


def test_an_unused_default_that_readers_do_not_read_is_no_fault_in_one_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "base.yaml").write_text("default: IQ4_NL\n")
    own = "extends: base.yaml\nreaders: [mistral.rs]\nrules: [{name: '*', type: Q8_0}]"
    _, text = resolve(own, tmp_path)
    found = parse_recipe(text, "one.yaml", "one")
    assert found.default.name != "IQ4_NL"
    assert found.readers == ("mistral.rs",)


def test_readers_are_kept_and_inherited_types_that_they_do_not_read_stay_optional(
    tmp_path: Path,
) -> None:
    """dynamic-4bit gives MXFP4 to gpt-oss only, which mistral.rs does not read."""
    recipe, text = resolve("extends: dynamic-4bit\nreaders: [mistral.rs, candle]", tmp_path)
    assert recipe.readers == ("mistral.rs", "candle")
    same(recipe, parse_recipe(text, "one.yaml", "one"))
