"""Errors that make a model useless are warnings, whatever caused them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade import model, recipe, weights

import dynquant
from dynquant.arch.base import ModelTensor
from dynquant.tensors import Computed


def warnings_of(tmp_path: Path, type_: str, factor: float) -> tuple[str, ...]:
    return convert(tmp_path, type_, weights(8, 256) * np.float32(factor)).warnings


def convert(tmp_path: Path, type_: str, x: np.ndarray) -> dynquant.Result:
    tensor = ModelTensor("blk.0.ffn_up.weight", Computed(x))
    return dynquant.convert(model(tensor), tmp_path / "x.gguf", recipe=recipe(type_))


@pytest.mark.parametrize("type_", ["F16", "Q4_K"])
def test_weights_beyond_the_range_of_a_type_are_a_warning(tmp_path: Path, type_: str) -> None:
    (message,) = warnings_of(tmp_path, type_, 1e20)
    assert message.startswith("blk.0.ffn_up.weight: more than half is lost")
    assert "beyond the range of the type" in message


def test_a_few_weights_beyond_the_range_of_f16_are_a_warning(tmp_path: Path) -> None:
    x = weights(8, 256)
    x[3, 5] = 65519
    assert convert(tmp_path, "F16", x).warnings == (), "65519 is rounded to 65504"
    x *= 100
    x[3, 5] = 7e4
    (tmp_path / "two").mkdir()
    (message,) = convert(tmp_path / "two", "F16", x).warnings
    assert message.startswith("blk.0.ffn_up.weight: weights beyond the range of F16 became 65504")


@pytest.mark.parametrize("type_", ["TQ2_0", "TQ1_0", "Q1_0"])
def test_types_of_special_models_are_a_warning_for_others(tmp_path: Path, type_: str) -> None:
    (message,) = warnings_of(tmp_path, type_, 1)
    assert f"blk.0.ffn_up.weight: {type_} has a relative squared error of up to 0." in message


@pytest.mark.parametrize("type_", ["BF16", "Q8_0", "Q2_K"])
def test_usual_errors_are_not(tmp_path: Path, type_: str) -> None:
    assert warnings_of(tmp_path, type_, 1) == ()


def test_ternary_weights_in_a_ternary_type_are_not(tmp_path: Path) -> None:
    ternary = np.random.default_rng(0).integers(-1, 2, (8, 256)).astype(np.float32) * 0.25
    assert convert(tmp_path, "TQ2_0", ternary).warnings == ()
