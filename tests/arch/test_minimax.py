"""MiniMax M2: rotated weights, FP8 blocks, and layers that predict further tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from packers import FORMATS, Stored, stored_in, write_stored

from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.transforms import read_weights


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


def test_a_head_size_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ArchitectureError, match="head_dim is 'x'"):
        describe(config() | {"head_dim": "x"}, "config.json")


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


def test_experts_in_fp8_blocks_are_read(tmp_path: Path) -> None:
    """As published: the router, its bias and the output matrix are not quantized."""
    fp8 = FORMATS["fp8 128x128 F32"]
    source, rng = load_reference("minimax-m2").folder, np.random.default_rng(0)
    packed: Stored = {}
    values: dict[str, np.ndarray] = {}
    for name, (kind, x) in stored_in(source).items():
        packed[name] = (kind, x)
        if "_proj.weight" in name or ".experts." in name:
            del packed[name]
            stored, values[name] = fp8.pack(name, x.shape, rng)
            packed |= stored
    quantized = {
        **fp8.settings,
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
    }
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors*"))
    changed = config() | {"quantization_config": quantized}
    model = load_model(write_stored(tmp_path / "m", changed, packed))
    by_name = {tensor.name: tensor for tensor in model.tensors}
    for role, part in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
        tensor = by_name[f"blk.1.ffn_{role}_exps.weight"]
        found = read_weights(tensor.source, 0, tensor.n_rows).reshape(tensor.shape)
        expected = values[f"model.layers.1.block_sparse_moe.experts.4.{part}.weight"]
        np.testing.assert_array_equal(found[4], expected)
