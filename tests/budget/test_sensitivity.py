"""Files of sensitivities: the same solutions as without, and refused for everything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluated import TEXTS
from open_types import planned, tensors
from places import TINY_BOOKS

import dynquant
from dynquant.budget.errors import WEIGHTS, measure_errors
from dynquant.budget.groups import groups_of
from dynquant.budget.measure import Change, changes_of, measure_factors
from dynquant.budget.sensitivity import (
    GroupPart,
    MeasuredPart,
    Sensitivity,
    check_fit,
    read_sensitivity,
    sensitivity_of,
    write_sensitivity,
)
from dynquant.budget.solve import pose, solve_for
from dynquant.errors import PlanError
from dynquant.evaluate.settings import Settings
from dynquant.inputs import Inputs
from dynquant.plan.plan import Plan
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.target import Target


def measured(plan: Plan) -> Sensitivity:
    return sensitivity_of(plan, measure_errors(plan, groups_of(plan, ()), threads=1), WEIGHTS)


def misfits(found: Sensitivity, plan: Plan) -> list[str]:
    with pytest.raises(PlanError) as e:
        check_fit(found, plan, groups_of(plan, ()), "s.json")
    return list(e.value.messages)


def test_a_written_file_is_read_as_it_was(tmp_path: Path) -> None:
    found = measured(planned(tmp_path))
    write_sensitivity(found, tmp_path / "s.json")
    assert read_sensitivity(tmp_path / "s.json") == found
    check_fit(found, planned(tmp_path), groups_of(planned(tmp_path), ()), "s.json")


def test_another_imatrix_effort_or_moments_are_refused(tmp_path: Path) -> None:
    found = measured(planned(tmp_path))
    (message,) = misfits(found, planned(None))
    assert message.startswith("s.json: was measured with another imatrix (")
    (message,) = misfits(found, planned(tmp_path, more="effort: fast"))
    assert message == ("s.json: was measured with another effort (normal, now fast); measure again")
    (message,) = misfits(found, planned(tmp_path, moments=True))
    assert "another second moments (none, now " in message
    assert "another error feedback (none, now " in message


def test_other_weights_are_refused_by_name(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[Q4_K]")
    found = measured(plan)
    first, second, *others = tensors()
    swapped = {first.name: first, second.name: second}
    pairs = zip(others, others[::-1], strict=True)
    swapped |= {a.name: replace(a, source=b.source) for a, b in pairs}
    (message,) = misfits(found, replace(plan, sources=swapped))
    assert message == (
        "s.json: was measured with other weights: blk.0.ffn_gate.weight, blk.0.ffn_up.weight;"
        " measure again"
    )


def test_types_that_were_not_measured_are_refused(tmp_path: Path) -> None:
    found = measured(planned(tmp_path, "[Q4_K]"))
    messages = misfits(found, planned(tmp_path, "[Q4_K, Q5_K]"))
    assert messages[0] == (
        "s.json: token_embd.weight: has no error of Q5_K; measure with this recipe"
    )
    assert len(messages) == len(tensors())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sensitivity": 2}, "is a sensitivity of version 2"),
        ({"weights": -1}, "'weights' is -1"),
        ({"tensors": {"a": {"shape": [1], "rows": "x", "errors": {}}}}, "'tensors.a.rows' is 'x'"),
        ({"more": 1}, "'more' is not part of a sensitivity"),
    ],
)
def test_a_damaged_file_is_one_error(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "s.json"
    write_sensitivity(measured(planned(None, "[Q4_K]")), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(PlanError, match=r"s\.json: ") as e:
        read_sensitivity(path)
    assert expected in str(e.value)


def part(label: str, error: float, kld: float, standard_error: float = 0.01) -> GroupPart:
    return GroupPart(
        label=label, tensors=[label], error=error, kld=kld, standard_error=standard_error
    )


def test_factors_are_loss_over_error_with_its_noise() -> None:
    groups = [part("a", 0.5, 0.2), part("b", -0.5, -0.2), part("c", 0.5, -0.3), part("d", 0.1, 0)]
    found = measured(planned(None, "[Q4_K]"))
    its = MeasuredPart(reference="r", texts={}, tokens=1, recipe="", kld=0.1, groups=groups)
    factors = found.model_copy(update={"measured": its}).factors()
    noise = {part.label: part.standard_error / abs(part.error) for part in groups}
    assert {name: its.value for name, its in factors.items()} == pytest.approx(
        {"a": 0.4, "b": 0.4, "c": -0.6, "d": 0.0}
    )
    assert {name: its.standard_error for name, its in factors.items()} == pytest.approx(noise)


OPEN = "{role: [ffn_down, attn_v], choose: [Q8_0, Q4_K, Q2_K]}"


@pytest.mark.slow
@pytest.mark.oracle
def test_an_interrupted_measurement_resumes_and_costs_are_of_real_files(tmp_path: Path) -> None:
    model = dynquant.load_model(TINY_BOOKS)
    inputs = Inputs(model, parse_recipe(f"default: Q8_0\nrules: [{OPEN}]", "r.yaml", "r"), None)
    target = Target(bpw=7.2)
    problem = pose(inputs, target=target, threads=2)
    text = tmp_path / "text.txt"
    text.write_text(TEXTS[0])
    settings = Settings(cache=tmp_path / "cache", texts=(text,), context=64, tokens=256, threads=2)
    (tmp_path / "work").mkdir()
    saved: list[Sensitivity] = []

    def run(found: Sensitivity, stop: int | None = None) -> Sensitivity:
        def save(one: Sensitivity) -> None:
            saved.append(one)
            if len(saved) == stop:
                raise KeyboardInterrupt

        return measure_factors(
            problem,
            target,
            found,
            settings,
            str(TINY_BOOKS),
            tmp_path / "work",
            progress=lambda *_: None,
            say=lambda _: None,
            save=save,
        )

    empty = sensitivity_of(problem.plan, problem.errors, WEIGHTS)
    with pytest.raises(KeyboardInterrupt):
        run(empty, stop=3)
    resumed = run(saved[2])
    assert resumed.measured is not None
    labels = [g.label for g in resumed.measured.groups]
    changes = changes_of(problem, solve_for(problem, target))
    assert labels == [c.label for c in changes]
    assert len(saved) == len(changes)
    errors = {c.label: c.error for c in changes}
    down = [g for g in resumed.measured.groups if g.label.startswith("ffn_down")]
    assert all(g.error == errors[g.label] for g in resumed.measured.groups)
    assert sum(g.kld / g.error for g in down) > 0
    assert isinstance(changes[0], Change)
    known = pose(inputs, target=target, known=resumed, known_as="s.json")
    assert known.damage != problem.damage
