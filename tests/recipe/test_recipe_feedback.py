"""Recipes and rules say which tensors have error feedback; faults are named with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynquant.errors import RecipeError
from dynquant.recipe.feedback import Feedback, FeedbackSetting
from dynquant.recipe.loader import load_recipe, parse_recipe


def feedback(text: str) -> Feedback:
    return parse_recipe(f"default: Q4_K\n{text}", "r.yaml", "r").feedback


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("", FeedbackSetting(0.2, 1)),
        ("feedback: auto", FeedbackSetting(0.2, 1)),
        ("feedback: required", FeedbackSetting(0.2, 1)),
        ("feedback: off", None),
        ("feedback: {use: off, sweeps: 3}", None),
        ("feedback: {damping: 0.01}", FeedbackSetting(0.01, 1)),
        ("feedback: {damping: 1, sweeps: 0}", FeedbackSetting(1, 0)),
        ("feedback: {damping: 2.5e-1, sweeps: 8}", FeedbackSetting(0.25, 8)),
    ],
)
def test_the_setting_has_the_defaults_of_what_is_not_given(
    text: str, setting: FeedbackSetting | None
) -> None:
    assert feedback(text).setting == setting


def test_a_mapping_may_have_off_as_yaml_loads_it() -> None:
    assert load_recipe({"default": "Q4_K", "feedback": False}).feedback.setting is None
    assert load_recipe({"default": "Q4_K", "feedback": "off"}).feedback.setting is None
    small = load_recipe({"default": "Q4_K", "feedback": {"damping": 0.0125}}).feedback
    assert small.damping == 0.0125


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feedback: on", "2:11: 'on' is not auto, off or required"),
        ("feedback: requierd", "2:11: 'requierd' is not auto, off or required; did you mean req"),
        ("feedback: [off]", "2:11: expected one value, not a list"),
        ("feedback:", "2:10: no value; add one or remove the key"),
        ("feedback: {}", "2:11: feedback is empty; add use, damping or sweeps, or remove it"),
        ("feedback: {damp: 1}", "2:12: unknown key 'damp'; did you mean damping?"),
        ("feedback: {damping: 5%}", "2:21: '5%' is not a damping; write a number from 0.01 to 1, "),
        (
            "feedback: {damping: 1.01}",
            "2:21: '1.01' is not a damping; write a number from 0.01 to 1",
        ),
        ("feedback: {damping: nan}", "2:21: 'nan' is not a damping"),
        ("feedback: {sweeps: 9}", "2:20: '9' is not a number of sweeps; write a whole number from"),
        ("feedback: {sweeps: 2.0}", "2:20: '2.0' is not a number of sweeps"),
        (
            "rules: [{role: attn_v, keep: true, feedback: off}]",
            "2:46: `feedback` and `keep` in one rule; feedback is for `type`",
        ),
        (
            "rules: [{role: attn_v, drop: true, feedback: off}]",
            "2:46: `feedback` and `drop` in one rule; feedback is for `type`",
        ),
    ],
)
def test_a_fault_is_reported_with_its_place(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as e:
        feedback(text)
    assert e.value.messages[0].startswith(f"r.yaml:{message}")


def test_feedback_is_joined_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("default: Q4_K\nfeedback: {use: required, damping: 0.1}")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nfeedback: {damping: 0.2, sweeps: 4}")
    (tmp_path / "c.yaml").write_text("extends: b.yaml\nfeedback: {sweeps: 0}")
    assert load_recipe(tmp_path / "c.yaml").feedback == Feedback("required", 0.2, 0)
