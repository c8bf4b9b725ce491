"""Ceilings are complete, and the check that none of them rises notices one that does."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from agreement import FAMILIES, TINY_BOOKS
from ceilings import RECIPES, ceiling_of, kl_ceilings, type_ceilings
from places import ROOT

from dynquant.quants import ALL

SCRIPT = ROOT / "scripts" / "checks" / "compare_ceilings.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("compare_ceilings", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_type_has_a_ceiling() -> None:
    assert list(type_ceilings()) == list(ALL)


def test_every_family_has_a_ceiling_for_each_recipe() -> None:
    stored = kl_ceilings()
    assert set(stored) == {*FAMILIES, TINY_BOOKS}
    assert all(set(stored[family]) == set(RECIPES) for family in FAMILIES)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"a": {"x": 1.0, "y": 2.0}}, []),
        ({"a": {"x": 0.5, "y": 2.0}, "b": {"x": 9.0}}, []),
        ({"a": {"x": 1.1, "y": 2.0}}, ["a, x: rose from 1 to 1.1"]),
        ({"a": {"x": 1.0}}, ["a, y: 2 is missing"]),
    ],
    ids=["equal", "lower and new", "higher", "missing"],
)
def test_only_ceilings_that_rise_or_disappear_are_reported(
    script: Any, after: dict[str, Any], expected: list[str]
) -> None:
    assert script.raised({"a": {"x": 1.0, "y": 2.0}}, after) == expected


def test_both_files_that_the_check_compares_have_ceilings(script: Any) -> None:
    contents = [dict(script.leaves(script.content_of(path))) for path in script.FILES]
    assert all(contents)


@pytest.mark.parametrize("measured", [1e-6, 0.01234, 0.0999, 0.98, 1.0, 3.21])
def test_ceiling_of_a_measured_divergence_is_at_most_3_percent_above_it(measured: float) -> None:
    assert 1.02 * measured <= ceiling_of(measured) <= 1.031 * measured
