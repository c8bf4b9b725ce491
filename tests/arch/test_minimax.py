"""MiniMax M2: rotated weights, and layers that predict further tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from agreement import load_reference
from packers import stored_in, write_stored

from dynquant.arch.load import describe, load_model


def config() -> dict[str, Any]:
    path = load_reference("minimax-m2").folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize(
    ("changes", "n_rotated"),
    [
        ({}, 12),
        ({"rotary_dim": 10}, 10),
        ({"rotary_dim": None}, 20),
        ({"partial_rotary_factor": 0.4}, 8),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.3}}, 6),
    ],
)
def test_rotary_dim_applies_if_no_factor_is_stated(changes: dict[str, Any], n_rotated: int) -> None:
    found = describe(config() | changes, "config.json")
    assert found.keys["minimax-m2.rope.dimension_count"].value == n_rotated


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    source = load_reference("minimax-m2").folder
    stored = stored_in(source)
    more = {
        name.replace("layers.2.", f"layers.{layer}."): tensor
        for name, tensor in stored.items()
        for layer in (3, 5)
        if "layers.2." in name
    }
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors*"))
    model = load_model(write_stored(tmp_path / "m", config(), stored | more))
    assert set(model.ignored) == set(more)
    assert set(model.ignored.values()) == {
        "layers that predict further tokens, which llama.cpp does not compute for this family"
    }
