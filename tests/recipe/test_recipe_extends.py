"""A recipe that extends others: order of rules, inherited keys, diamonds and cycles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unread import unread

from dynquant.errors import RecipeError
from dynquant.importance.experts import DEFAULT, Policy
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


def test_importance_is_joined_key_by_key(folder: Path) -> None:
    write(folder / "middle.yaml", "extends: parent.yaml\nimportance: {shrink: 0, unseen: error}")
    text = "extends: middle.yaml\nimportance: {shrink: 7}"
    child = load_recipe(write(folder / "child.yaml", text))
    assert (child.importance, child.experts) == ("required", Policy(7, "error"))
    assert load_recipe("parent.yaml").experts == DEFAULT


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


@pytest.mark.slow
def test_long_chain_of_extends_is_read(folder: Path) -> None:
    for i in range(50):
        (folder / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml")
    (folder / "50.yaml").write_text("default: Q4_K")
    assert load_recipe("0.yaml").default.name == "Q4_K"


def chains(folder: Path, **extends: str) -> None:
    """Write recipes that extend others; each has one rule, noted with its name."""
    for name, value in extends.items():
        (folder / f"{name}.yaml").write_text(
            (f"extends: {value}\n" if value else "default: Q4_K\n")
            + f"rules: [{{role: attn_v, type: Q6_K, note: {name}}}]"
        )


def order(name: str) -> str:
    return "".join(rule.note for rule in load_recipe(name).rules)


def test_rules_of_later_recipes_come_before_those_of_earlier_ones(folder: Path) -> None:
    chains(folder, a="[b.yaml, c.yaml]", b="", c="d.yaml", d="")
    assert order("a.yaml") == "acdb"


def test_recipe_that_is_extended_twice_comes_once_after_all_that_extend_it(folder: Path) -> None:
    chains(folder, a="[b.yaml, c.yaml]", b="d.yaml", c="d.yaml", d="")
    recipe = load_recipe("a.yaml")
    assert order("a.yaml") == "acbd"
    assert [text.rpartition("note: ")[2][0] for text in recipe.texts] == ["c", "b", "d"]
    chains(folder, a="[d.yaml, c.yaml, b.yaml]")
    assert order("a.yaml") == "abcd"


def test_extended_recipe_after_one_that_extends_it_is_refused(folder: Path) -> None:
    chains(folder, a="[b.yaml, d.yaml]", b="d.yaml", d="")
    assert refusal("a.yaml") == [
        "a.yaml:1:10: d.yaml is listed after b.yaml, which extends it, so that each would precede"
        " the other; list b.yaml after it"
    ]


def test_contradiction_deeper_down_is_refused(folder: Path) -> None:
    chains(folder, a="[b.yaml, c.yaml]", b="[d.yaml, e.yaml]", c="[e.yaml, d.yaml]", d="", e="")
    (message,) = refusal("a.yaml")
    assert message.startswith("a.yaml:1:10: ")
    assert "are in different orders in two lists of `extends`, so that each" in message


def test_recipe_that_is_listed_twice_is_refused(folder: Path) -> None:
    chains(folder, a="\n  - b.yaml\n  - ./b.yaml", b="")
    assert refusal("a.yaml") == ["a.yaml:3:5: b.yaml is listed twice; line 2 has it first"]


def test_order_is_that_of_python_classes(folder: Path) -> None:
    """The oracle: Python's order of base classes, with the later of two recipes first."""
    chains(
        folder,
        a="[f.yaml, b.yaml, c.yaml]",
        b="[g.yaml, d.yaml]",
        c="[g.yaml, d.yaml, e.yaml]",
        d="h.yaml",
        e="h.yaml",
        f="g.yaml",
        g="",
        h="",
    )
    h, g = type("h", (), {}), type("g", (), {})
    d, e, f = type("d", (h,), {}), type("e", (h,), {}), type("f", (g,), {})
    b, c = type("b", (d, g), {}), type("c", (e, d, g), {})
    expected = type("a", (c, b, f), {}).__mro__[:-1]
    assert order("a.yaml") == "".join(cls.__name__ for cls in expected)


LATER = """\
default: Q5_K
effort: fast
output: {tensor_order: model}
metadata: {general.name: Later, c.d: e}
for: llama
"""


def test_of_keys_with_one_value_that_of_the_last_recipe_which_sets_it_counts(folder: Path) -> None:
    (folder / "later.yaml").write_text(LATER)
    child = load_recipe(write(folder / "child.yaml", "extends: [parent.yaml, later.yaml]"))
    assert (child.default.name, child.effort, child.intended) == ("Q5_K", "fast", ("llama",))
    assert (child.description, child.importance) == ("the parent", "required")
    assert (child.output.tensor_order, child.output.shard_bytes) == ("model", 10**9)
    assert child.metadata == {"general.name": "Later", "a.b": "c", "c.d": "e"}
    assert [t.name for t in child.fallback.of_all] == ["Q8_0"]
    assert child.keeps_prediction


def test_given_keys_override_all_extended_recipes(folder: Path) -> None:
    (folder / "later.yaml").write_text(LATER)
    text = "extends: [parent.yaml, later.yaml]\ndefault: F16\nmetadata: {c.d: own}"
    child = load_recipe(write(folder / "child.yaml", text))
    assert (child.default.name, child.default_place.path) == ("F16", "child.yaml")
    assert child.metadata == {"general.name": "Later", "a.b": "c", "c.d": "own"}


def test_faults_of_a_recipe_that_is_extended_twice_are_reported_once(folder: Path) -> None:
    chains(folder, a="[b.yaml, c.yaml]", b="d.yaml", c="d.yaml")
    (folder / "d.yaml").write_text("default: Q4_X")
    (message,) = refusal("a.yaml")
    assert message.startswith("d.yaml:1:10: ")


def test_cycle_through_a_list_is_refused(folder: Path) -> None:
    chains(folder, a="[d.yaml, b.yaml]", b="[d.yaml, a.yaml]", d="")
    (message,) = refusal("a.yaml")
    assert message.startswith("b.yaml:1:19: 'a.yaml' extends itself: a.yaml -> b.yaml -> a.yaml")


@pytest.mark.slow
def test_ladder_of_diamonds_is_read_in_little_time(folder: Path) -> None:
    """Each of 60 files extends two; there are 2^30 ways through them."""
    for i in range(0, 58, 2):
        both = f"[{i + 2}.yaml, {i + 3}.yaml]"
        chains(folder, **{str(i): both, str(i + 1): both})
    chains(folder, **{"58": "", "59": ""})
    assert len(load_recipe("0.yaml").rules) == 59


@pytest.mark.slow
def test_more_files_than_the_limit_are_refused(folder: Path) -> None:
    names = [f"x{i}" for i in range(64)]
    chains(folder, a=f"[{', '.join(f'{n}.yaml' for n in names)}]", **dict.fromkeys(names, ""))
    (message,) = refusal("a.yaml")
    assert "'x63.yaml' follows 64 recipes that extend each other; merge some of them" in message


def test_readers_are_those_of_the_last_recipe_that_names_some(folder: Path) -> None:
    (folder / "later.yaml").write_text("default: Q5_K\nreaders: candle")
    (folder / "parent.yaml").write_text(PARENT + "readers: [llama.cpp]")
    child = load_recipe(write(folder / "child.yaml", "extends: [later.yaml, parent.yaml]"))
    assert child.readers == ("llama.cpp",)
