"""Prediction layers of GLM-4-MoE, and settings of GLM-4 that are rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import F32_TOLERANCE, TESTS, config_of, load_reference, max_difference
from predicting import with_copied_layer
from safetensors import safe_open

import dynquant
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.recipe.loader import parse_recipe

GLM4_MOE = TESTS / "references" / "glm4moe"


@pytest.fixture
def with_prediction(tmp_path: Path) -> Path:
    """Write the reference with a copy of its last layer as a prediction layer."""
    folder = shutil.copytree(GLM4_MOE, tmp_path / "predicts")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    header.pop("__metadata__", None)
    last = {name: entry for name, entry in header.items() if name.startswith("model.layers.2.")}
    header |= {name.replace("layers.2.", "layers.3."): entry for name, entry in last.items()}
    at = "model.layers.3."
    norm, head = header["model.norm.weight"], header["lm_head.weight"]
    header |= {f"{at}{name}.weight": norm for name in ("enorm", "hnorm", "shared_head.norm")}
    header |= {f"{at}{name}.weight": head for name in ("embed_tokens", "shared_head.head")}
    header[f"{at}eh_proj.weight"] = {"dtype": "BF16", "shape": [32, 64], "data_offsets": [0, 0]}
    data = bytearray()
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        found = content[8 + n + start : 8 + n + stop] or np.zeros(32 * 64, np.uint16).tobytes()
        header[name] = entry | {"data_offsets": [len(data), len(data) + len(found)]}
        data += found
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def test_prediction_layers_are_distinguished_from_the_models_own(with_prediction: Path) -> None:
    model = load_model(with_prediction)
    assert model.prediction is not None
    assert model.prediction.layers == range(3, 4)
    assert {k: v.value for k, v in model.prediction.keys.items()} == {
        "glm4moe.block_count": 4,
        "glm4moe.nextn_predict_layers": 1,
    }
    assert model.keys["glm4moe.block_count"].value == 3
    ahead = {t.parts.role for t in model.tensors if t.parts.layer == 3}
    own = {t.parts.role for t in model.tensors if t.parts.layer == 2}
    assert ahead - own == {
        "nextn.eh_proj",
        "nextn.embed_tokens",
        "nextn.enorm",
        "nextn.hnorm",
        "nextn.shared_head_head",
        "nextn.shared_head_norm",
    }
    assert own <= ahead
    with safe_open(with_prediction / "model.safetensors", "np") as stored:
        n_stored = len([n for n in stored.keys() if ".experts." not in n])  # noqa: SIM118
    assert len([t for t in model.tensors if not t.name.endswith("_exps.weight")]) == n_stored


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("keep", ["drop", "keep"])
def test_results_are_the_same_with_and_without_prediction_layers(
    with_prediction: Path, tmp_path: Path, keep: str
) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference("glm4moe")
    out = tmp_path / f"{keep}.gguf"
    recipe = parse_recipe(f"default: F32\nprediction_layers: {keep}", "r.yaml", "r")
    plan = dynquant.convert(with_prediction, out, recipe=recipe, threads=1).plan
    assert ("blk.3.nextn.eh_proj.weight" in plan.sources) == (keep == "keep")
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


def test_a_checkpoint_without_its_prediction_layers_is_complete() -> None:
    model = load_model(GLM4_MOE)
    assert config_of("glm4moe")["num_nextn_predict_layers"] == 1
    assert model.prediction is None


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("glm", {"head_dim": 12}, "is 48, not hidden_size 32"),
    ("glm4", {"partial_rotary_factor": 0.25}, "rotates 5 weights"),
    ("glm4", {"rope_scaling": {"rope_type": "llama3"}}, "does not compute rope_type 'llama3'"),
    ("glm4", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
)


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_settings_that_llama_cpp_does_not_compute_are_rejected(
    family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of(family) | changes, "config.json")


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("keep", ["drop", "keep"])
def test_results_of_glm_ocr_are_the_same_with_and_without_its_prediction_layer(
    tmp_path: Path, keep: str
) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    norms = ("enorm", "hnorm", "shared_head.norm")
    more = {f"{name}.weight": "model.language_model.norm.weight" for name in norms}
    more["shared_head.head.weight"] = "lm_head.weight"
    last = "model.language_model.layers.1."
    folder = with_copied_layer("glm-ocr", tmp_path / "predicts", last, more)
    out = tmp_path / f"{keep}.gguf"
    recipe = parse_recipe(f"default: F32\nprediction_layers: {keep}", "r.yaml", "r")
    plan = dynquant.convert(folder, out, recipe=recipe, threads=1).plan
    assert ("blk.2.nextn.eh_proj.weight" in plan.sources) == (keep == "keep")
    assert "blk.2.nextn.shared_head_head.weight" not in plan.sources  # equal to the model's
    reference = load_reference("glm-ocr")
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE
