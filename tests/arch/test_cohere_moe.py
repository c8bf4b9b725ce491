"""Command-A-plus: its prediction layer, and the limits of llama.cpp's graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import F32_TOLERANCE, load_reference, max_difference
from packers import Stored, stored_in, write_stored

import dynquant
from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError
from dynquant.recipe.loader import parse_recipe


def config_of(**changes: Any) -> dict[str, Any]:
    text = (load_reference("cohere2moe").folder / "config.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    return config | changes


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("kept", ["keep", "drop"])
def test_a_file_with_or_without_its_prediction_layer_gives_the_same_results(
    kept: str, tmp_path: Path
) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference("cohere2moe")
    stored = stored_in(reference.folder)
    layer = "model.layers.5."
    ahead: Stored = {
        name.replace("model.layers.4.", layer): tensor
        for name, tensor in stored.items()
        if "layers.4." in name
    }
    rng = np.random.default_rng(0)
    ahead[f"{layer}eh_proj.weight"] = (
        "BF16",
        rng.integers(0x3C00, 0x3E00, (32, 64)).astype(np.uint16),
    )
    for name in ("enorm", "hnorm"):
        ahead[f"{layer}{name}.weight"] = stored["model.norm.weight"]
    folder, out = tmp_path / "m", tmp_path / "m.gguf"
    shutil.copytree(reference.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    write_stored(folder, config_of(num_nextn_predict_layers=1), stored | ahead)
    recipe = parse_recipe(f"default: F32\nprediction_layers: {kept}", "r.yaml", "r")
    plan = dynquant.convert(folder, out, recipe=recipe, threads=1).plan
    assert any("nextn" in t.name for t in plan.tensors) == (kept == "keep")
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


def test_layers_with_experts_count_their_windows_from_the_first_of_them() -> None:
    changes = {"layer_types": None, "mlp_layer_types": None, "first_k_dense_replace": 1}
    found = describe(config_of(**changes, sliding_window_pattern=4), "config.json")
    slides = found.keys["cohere2moe.attention.sliding_window_pattern"].value
    assert slides == (False, True, True, True, False)


def test_dense_layers_of_mlp_layer_types_count_with_the_others() -> None:
    # As transformers' class counts them: the fourth of all layers has no window.
    found = describe(config_of(layer_types=None, sliding_window_pattern=4), "config.json")
    slides = found.keys["cohere2moe.attention.sliding_window_pattern"].value
    assert slides == (True, True, True, False, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_expert_combination_strategy": "sum"}, "is sum; llama.cpp computes"),
        ({"expert_selection_fn": "tanh"}, "expert_selection_fn is 'tanh'; .* 'softmax' or"),
        ({"prefix_dense_sliding_window_pattern": 2}, "dense layers without a window have no rot"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers is 2; llama.cpp computes one"),
        ({"attention_bias": True}, "attention_bias is True"),
    ],
)
def test_settings_that_the_graph_cannot_compute_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        describe(config_of(**changes), "config.json")
