"""DeepSeek-V3.2 and GLM-5: prediction layers, layers that share an indexer, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import F32_TOLERANCE, config_of, load_reference, max_difference
from packers import FORMATS, Stored, stored_in, write_stored
from predicting import plan_of, with_prediction

import dynquant
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.recipe.loader import parse_recipe
from dynquant.transforms import read_weights

KEEP = "default: F32\nprediction_layers: keep"
INDEXER = {f"indexer.{name}" for name in ("attn_q_b", "attn_k", "k_norm", "proj")}


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("family", ["deepseek-v3.2", "glm5"])
def test_results_with_the_prediction_layer_are_the_same(family: str, tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference(family)
    folder = with_prediction(tmp_path / "m", family=family)
    out = tmp_path / "m.gguf"
    recipe = parse_recipe(KEEP, "r.yaml", "r")
    plan = dynquant.convert(folder, out, recipe=recipe, threads=1).plan
    assert any(name.endswith("nextn.eh_proj.weight") for name in plan.sources)
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE
    drafted, _ = llamacpp.drafts(out, reference.prompts[:2], 20)
    assert drafted > 10


@pytest.mark.slow
def test_the_prediction_layer_of_deepseek_v3_2_has_an_indexer(tmp_path: Path) -> None:
    plan = plan_of(with_prediction(tmp_path / "a", family="deepseek-v3.2"), KEEP)
    assert {t.name.removeprefix("blk.3.").rsplit(".", 1)[0] for t in plan.tensors} >= INDEXER
    name = "model.layers.3.self_attn.indexer.wk.weight"
    folder = with_prediction(tmp_path / "b", family="deepseek-v3.2", without=name)
    with pytest.raises(ArchitectureError, match=r"indexer\.wk\.weight"):
        plan_of(folder, KEEP)


def test_the_prediction_layer_of_glm_5_2_may_have_no_indexer(tmp_path: Path) -> None:
    plan = plan_of(with_prediction(tmp_path / "m", family="glm5"), KEEP)
    roles = {t.name.removeprefix("blk.4.").rsplit(".", 1)[0] for t in plan.tensors}
    assert "nextn.eh_proj" in roles
    assert not INDEXER & roles


@pytest.mark.parametrize(
    ("settings", "full"),
    [
        ({"index_topk_pattern": "FSFF"}, (True, False, True, True)),
        ({"index_topk_freq": 3}, (True, True, False, False)),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, (True, False, True, False)),
        ({}, (True,) * 4),
    ],
)
def test_layers_with_an_indexer_are_stated_in_four_ways(
    settings: dict[str, Any], full: tuple[bool, ...]
) -> None:
    found = describe(config_of("glm5") | {"indexer_types": None} | settings, "config.json")
    assert found.keys["glm-dsa.attention.indexer.types"].value == full
    row = next(r for r in found.rows if r.name == "blk.{}.indexer.proj.weight")
    assert [*(row.layers or ())] == [layer for layer, has in enumerate(full) if has]


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("deepseek-v3.2", {"index_head_dim": 96}, "with multiples of 64"),
    ("deepseek-v3.2", {"q_lora_rank": None}, "q_lora_rank is missing"),
    ("deepseek-v3.2", {"qk_rope_head_dim": 66}, "must fit in a head of the indexer"),
    ("deepseek-v3.2", {"indexer_rope_interleave": True}, "computes this family with false"),
    ("glm5", {"indexer_types": ["shared"] * 4}, "the first layer has no indexer"),
    ("glm5", {"indexer_types": ["full"] * 3}, "has 3 entries for num_hidden_layers 4"),
    ("glm5", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
    ("glm5", {"index_topk_pattern": "FXFF", "indexer_types": None}, "F and S"),
)


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(
    family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of(family) | changes, "config.json")


def test_fp8_blocks_of_the_indexer_give_its_weights(tmp_path: Path) -> None:
    stored, form = stored_in(load_reference("deepseek-v3.2").folder), FORMATS["fp8 128x128 F32"]
    rng = np.random.default_rng(0)
    packed: Stored = dict(stored)
    expected: dict[str, np.ndarray] = {}
    for stem, name in (("wq_b", "attn_q_b"), ("wk", "attn_k")):
        for layer in range(3):
            old = f"model.layers.{layer}.self_attn.indexer.{stem}.weight"
            parts, value = form.pack(old, stored[old][1].shape, rng)
            del packed[old]
            packed |= parts
            expected[f"blk.{layer}.indexer.{name}.weight"] = value
    folder = tmp_path / "m"
    source = load_reference("deepseek-v3.2").folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = {"quantization_config": form.settings}
    model = load_model(write_stored(folder, config_of("deepseek-v3.2") | settings, packed))
    found = {t.name: t for t in model.tensors}
    for name, value in expected.items():
        ours = read_weights(found[name].source, 0, found[name].n_rows)
        np.testing.assert_array_equal(ours, value)
