"""A saved plan needs its second moments, and names what does not fit any more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import computed_tensor, model, recipe
from jsonschema import Draft202012Validator
from second_moments import input_of, write_importance, write_moments

import dynquant
from dynquant.plan.saved import key_sha256, plan_schema

DOWN = computed_tensor("blk.0.ffn_down.weight", 6, 256)
UP = computed_tensor("blk.0.ffn_up.weight", 6, 256)
EMBEDDING = computed_tensor("token_embd.weight", 6, 256)
MODEL = model(EMBEDDING, DOWN, UP)
RULES = "rules: [{role: ffn_up, type: Q4_K, feedback: {damping: 0.1, sweeps: 1}}]"


class Files:
    """A saved plan with its inputs."""

    def __init__(self, folder: Path) -> None:
        self.plan = folder / "plan.json"
        self.inputs = {
            "imatrix": write_importance(folder / "i.gguf", DOWN, UP, EMBEDDING),
            "moments": write_moments(
                folder / "m.moments.safetensors", *map(input_of, (DOWN, UP, EMBEDDING))
            ),
        }
        self.made = dynquant.make_plan(MODEL, recipe("Q4_K", RULES), **self.inputs)
        self.made.save(self.plan)

    def load(self, **other: Any) -> dynquant.Plan:
        return dynquant.load_plan(self.plan, MODEL, **(self.inputs | other))

    def refusals(self, **other: Any) -> tuple[str, ...]:
        with pytest.raises(dynquant.DynquantError) as e:
            self.load(**other)
        return tuple(m.removeprefix(f"{self.plan}: ") for m in e.value.messages)

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        document = json.loads(self.plan.read_text())
        change(document)
        self.plan.write_text(json.dumps(document))

    def set_feedback(self, name: str, value: Any) -> None:
        def change(document: dict[str, Any]) -> None:
            next(t for t in document["tensors"] if t["name"] == name)["feedback"] = value

        self.edit(change)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_saved_plan_has_the_same_feedback(files: Files) -> None:
    again = files.load()
    assert again.moments and files.made.moments
    assert again.feedback == files.made.feedback
    assert [*again.feedback.values()] == [
        dynquant.FeedbackSetting(),
        dynquant.FeedbackSetting(0.1, 1),
    ]
    assert again.moments.inputs == files.made.moments.inputs
    assert again.keys == files.made.keys
    assert again.to_json()["tensors"] == [
        t | {"rule": again.recipe.short(t["rule"]).replace("recipes/", "")}
        for t in files.made.to_json()["tensors"]
    ]


def test_the_document_has_the_file_without_its_folder(files: Files, tmp_path: Path) -> None:
    document = json.loads(files.plan.read_text())
    Draft202012Validator(plan_schema()).validate(document)
    assert files.made.moments
    assert document["moments"] == {
        "file": "m.moments.safetensors",
        "header_sha256": files.made.moments.header_sha256,
    }
    assert [t["feedback"] for t in document["tensors"]] == [
        None,
        {"damping": 0.2, "sweeps": 1},
        {"damping": 0.1, "sweeps": 1},
    ]
    assert str(tmp_path) not in files.plan.read_text()


def test_warnings_about_the_moments_have_no_folder(files: Files, tmp_path: Path) -> None:
    other = write_moments(tmp_path / "o.moments", input_of(DOWN), tokens="7" * 64)
    plan = dynquant.make_plan(MODEL, recipe("Q4_K"), imatrix=files.inputs["imatrix"], moments=other)
    plan.save(files.plan, force=True)
    assert "o.moments: has the moments of other tokens than i.gguf" in files.plan.read_text()
    assert str(tmp_path) not in files.plan.read_text()


def test_missing_moments_are_named(files: Files) -> None:
    (message,) = files.refusals(moments=None)
    assert message.startswith("needs the second moments m.moments.safetensors, header sha256 ")
    assert message.endswith("; give them (--moments FILE)")


def test_other_moments_are_refused(files: Files, tmp_path: Path) -> None:
    other = write_moments(tmp_path / "o", *map(input_of, (DOWN, UP)), seed=1)
    (message,) = files.refusals(moments=other)
    assert f"; {other} has " in message


def test_moments_that_the_plan_was_made_without_are_refused(files: Files, tmp_path: Path) -> None:
    files.plan.unlink()
    dynquant.make_plan(MODEL, recipe("Q4_K"), imatrix=files.inputs["imatrix"]).save(files.plan)
    (message,) = files.refusals()
    assert message == f"was made without second moments; leave out {files.inputs['moments']}"


def test_an_edited_setting_is_named_with_the_key(files: Files) -> None:
    files.set_feedback(DOWN.name, {"damping": 0.2, "sweeps": 7})
    (message,) = files.refusals()
    assert message.startswith(
        "the feedback of its tensors is not that of the key dynquant.feedback;"
    )


def test_feedback_without_moments_is_named(files: Files) -> None:
    files.edit(lambda document: document.update(moments=None))
    (message,) = files.refusals(moments=None)
    assert message == f"has error feedback for {DOWN.name}, {UP.name}, and names no moments"


@pytest.mark.parametrize("value", [{"damping": 2, "sweeps": 1}, {"damping": 0.1}, "off"])
def test_a_setting_that_is_not_valid_is_refused(files: Files, value: Any) -> None:
    files.set_feedback(DOWN.name, value)
    assert "feedback" in str(files.refusals())


def test_a_tensor_that_cannot_have_feedback_is_named(files: Files) -> None:
    setting = {"damping": 0.2, "sweeps": 1}
    files.set_feedback(EMBEDDING.name, setting)
    text = json.dumps(
        [
            {**setting, "tensors": [EMBEDDING.name, DOWN.name]},
            {"damping": 0.1, "sweeps": 1, "tensors": [UP.name]},
        ]
    )
    key = dynquant.KeyValue(text, files.made.keys["dynquant.feedback"].type)
    files.edit(
        lambda document: document["keys"]["dynquant.feedback"].update(
            value=text, sha256=key_sha256(key)
        )
    )
    assert files.refusals() == (f"has error feedback for {EMBEDDING.name}, which cannot have it",)
