"""A recipe that extends another: order of rules, inherited keys, and cycles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unread import unread

from dynquant.errors import RecipeError
from dynquant.recipe.assignment import Assigned
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.match import assign

PARENT = """\
description: the parent
default: Q4_K
importance: required
effort: best
rules:
  - {role: attn_v, type: Q6_K}
  - {role: ffn_down, type: Q5_K}
fallback: [Q8_0]
output: {shard_size: 1GB, tensor_order: layer}
metadata: {general.name: Parent, a.b: c}
prediction_layers: keep
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent.yaml").write_text(PARENT)
    return tmp_path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return os.path.relpath(path)


def apply(text: str, folder: Path) -> Assigned:
    names = ("attn_q", "attn_v", "ffn_down")
    tensors = [unread(f"blk.0.{name}.weight", 8, 256) for name in names]
    return assign(load_recipe(write(folder / "child.yaml", text)), tensors)


def refusal(name: str) -> list[str]:
    with pytest.raises(RecipeError) as e:
        load_recipe(name)
    return list(e.value.messages)


def test_rules_of_the_child_come_first(folder: Path) -> None:
    text = "extends: parent.yaml\nrules: [{role: ffn_down, type: Q8_0}]"
    given = apply(text, folder).assignments
    assert [a.type.name for a in given.values()] == ["Q4_K", "Q6_K", "Q8_0"]
    assert given["blk.0.attn_v.weight"].rule == "parent.yaml:6"
    assert given["blk.0.attn_q.weight"].rule == "parent.yaml:2 default"


def test_overridden_parent_rule_gives_no_warning(folder: Path) -> None:
    text = "extends: parent.yaml\nrules: [{role: ffn_down, type: Q8_0}]"
    assert apply(text, folder).warnings == ()


def test_parent_rule_without_tensors_is_a_warning(folder: Path) -> None:
    (folder / "parent.yaml").write_text(PARENT.replace("attn_v", "attn_k_b"))
    (warning,) = apply("extends: parent.yaml", folder).warnings
    assert warning.startswith(
        "parent.yaml:6:5: rule (role attn_k_b) applies to no tensor: the model"
    )


def test_missing_keys_are_inherited(folder: Path) -> None:
    child = load_recipe(write(folder / "child.yaml", "extends: parent.yaml"))
    parent = load_recipe("parent.yaml")
    assert child.name == "child"
    assert (child.description, child.default, child.fallback) == (
        parent.description,
        parent.default,
        parent.fallback,
    )
    assert (child.importance, child.effort, child.output) == ("required", "best", parent.output)
    assert child.metadata == parent.metadata
    assert child.keeps_prediction


def test_given_keys_override_the_parent(folder: Path) -> None:
    text = (
        "extends: parent.yaml\ndefault: Q6_K\nimportance: ignored\neffort: fast\nfallback: error\n"
        "output: {tensor_order: model}\nmetadata: {general.name: Child}\nprediction_layers: drop\n"
    )
    child = load_recipe(write(folder / "child.yaml", text))
    assert (child.default.name, child.importance, child.effort) == ("Q6_K", "ignored", "fast")
    assert child.fallback.of(child.default) == ()
    assert (child.output.tensor_order, child.output.shard_bytes) == ("model", 10**9)
    assert child.metadata == {"general.name": "Child", "a.b": "c"}
    assert not child.keeps_prediction


def test_path_is_relative_to_the_extending_file(folder: Path) -> None:
    write(folder / "sub" / "middle.yaml", "extends: ../parent.yaml\ndefault: Q5_K")
    child = load_recipe(write(folder / "child.yaml", "extends: sub/middle.yaml"))
    assert child.default_place.path == str(Path("sub") / "middle.yaml")
    assert [rule.place.path for rule in child.rules] == ["parent.yaml"] * 2


def test_a_shipped_recipe_is_extended_by_its_name(folder: Path) -> None:
    child = load_recipe(write(folder / "child.yaml", "extends: dynamic-4bit"))
    assert {rule.place.path for rule in child.rules} == {"recipes/dynamic-4bit.yaml"}


def test_hash_covers_all_extended_recipes(folder: Path) -> None:
    child = write(folder / "child.yaml", "extends: parent.yaml")
    before = load_recipe(child).sha256
    (folder / "parent.yaml").write_text(PARENT.replace("Q5_K", "Q6_K"))
    assert load_recipe(child).sha256 != before


def test_cycle_of_extends_is_refused(folder: Path) -> None:
    (folder / "a.yaml").write_text("extends: b.yaml")
    (folder / "b.yaml").write_text("name: b\nextends: a.yaml")
    assert refusal("a.yaml") == [
        "b.yaml:2:10: 'a.yaml' extends itself: a.yaml -> b.yaml -> a.yaml; remove one `extends`"
    ]
    (folder / "a.yaml").write_text("extends: a.yaml")
    assert refusal("a.yaml") == [
        "a.yaml:1:10: 'a.yaml' extends itself: a.yaml -> a.yaml; remove one `extends`"
    ]


def test_a_missing_parent_is_refused_at_its_place(folder: Path) -> None:
    (folder / "a.yaml").write_text("extends: dynamic-4bits")
    assert refusal("a.yaml") == [
        "a.yaml:1:10: 'dynamic-4bits' is neither a shipped recipe nor a file; did you mean"
        " dynamic-4bit? (`dynquant recipes` lists the shipped ones)"
    ]


def test_faults_of_child_and_parent_are_reported_together_with_their_files(folder: Path) -> None:
    (folder / "parent.yaml").write_text("default: Q4_X")
    (folder / "a.yaml").write_text("extends: parent.yaml\nrules: [{role: attn_w, type: Q6_K}]")
    assert [m.split(" ")[0] for m in refusal("a.yaml")] == ["a.yaml:2:16:", "parent.yaml:1:10:"]


def test_long_chain_of_extends_is_read(folder: Path) -> None:
    for i in range(50):
        (folder / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml")
    (folder / "50.yaml").write_text("default: Q4_K")
    assert load_recipe("0.yaml").default.name == "Q4_K"
