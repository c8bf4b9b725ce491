"""K-EXAONE: its prediction layer, and the limits of llama.cpp's graph."""

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
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.recipe.loader import parse_recipe


def config_of(**changes: Any) -> dict[str, Any]:
    text = (load_reference("exaone-moe").folder / "config.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    return config | changes


def with_prediction(folder: Path, rope_type: str = "default") -> Path:
    """Write the reference with a prediction layer: its first layer, and a matrix."""
    source = load_reference("exaone-moe").folder
    stored = stored_in(source)
    ahead: Stored = {
        name.replace("model.layers.0.", "mtp.layers.0."): tensor
        for name, tensor in stored.items()
        if "layers.0." in name
    }
    rng = np.random.default_rng(0)
    ahead["mtp.fc.weight"] = ("BF16", rng.integers(0x3C00, 0x3E00, (32, 64)).astype(np.uint16))
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        ahead[f"mtp.{name}.weight"] = stored["model.norm.weight"]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    rope = {"rope_type": rope_type, "rope_theta": 77000.0}
    changes = {} if rope_type == "llama3" else {"rope_parameters": rope}
    return write_stored(folder, config_of(num_nextn_predict_layers=1, **changes), stored | ahead)


@pytest.mark.slow
@pytest.mark.oracle
def test_a_file_with_its_prediction_layer_gives_the_same_results(tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    prompts = load_reference("exaone-moe").prompts
    folder, found = with_prediction(tmp_path / "m"), []
    for kept in ("keep", "drop"):
        recipe = parse_recipe(f"default: F32\nprediction_layers: {kept}", "r.yaml", "r")
        out = tmp_path / f"{kept}.gguf"
        plan = dynquant.convert(folder, out, recipe=recipe, threads=1).plan
        assert any("nextn" in t.name for t in plan.tensors) == (kept == "keep")
        found.append(llamacpp.log_probabilities(out, prompts))
    assert max_difference(*found) < F32_TOLERANCE


@pytest.mark.slow
@pytest.mark.oracle
def test_with_rope_factors_the_prediction_layer_is_left_out(tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    folder = with_prediction(tmp_path / "m", "llama3")
    model = load_model(folder)
    assert model.prediction is None
    assert "rope factors" in model.ignored["mtp.fc.weight"]
    recipe = parse_recipe("default: F32\nprediction_layers: keep", "r.yaml", "r")
    dynquant.convert(folder, tmp_path / "m.gguf", recipe=recipe, threads=1)
    assert llamacpp.loads(tmp_path / "m.gguf")


def test_the_older_name_of_dense_layers_is_read() -> None:
    config = config_of(first_last_k_dense_replace=1, mlp_layer_types=None)
    del config["first_k_dense_replace"]
    found = describe(config, "config.json")
    assert found.keys["exaone-moe.leading_dense_block_count"].value == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": None, "layer_types": None}, "sliding_window is missing"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types has no 'sliding_attention'"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers is 2"),
        ({"tie_word_embeddings": True}, "requires a separate output matrix"),
        ({"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"]}, "not dense and then sparse"),
        ({"layer_types": None, "sliding_window_pattern": "LLX"}, "'LLX'; it must be a number or"),
    ],
)
def test_settings_that_the_graph_cannot_compute_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        describe(config_of(**changes), "config.json")


def test_the_prediction_layer_is_found(tmp_path: Path) -> None:
    model = load_model(with_prediction(tmp_path / "m"))
    assert model.prediction is not None
    roles = {t.parts.role for t in model.tensors if t.parts.layer == 4}
    assert roles >= {"nextn.eh_proj", "attn_q", "ffn_down"}
