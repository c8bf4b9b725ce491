"""Prediction layers (multi-token prediction): dropped, kept, or with separate types.

The model is the reference DeepSeek-V3 with one more layer, as in published models
(README_WEIGHTS.md of DeepSeek-V3): a decoder layer with experts, two norms, the matrix that joins
their results, and copies of the model's embedding and output.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
from agreement import F32_TOLERANCE, load_reference, max_difference
from predicting import N_LAYERS, plan_of, read_bf16, with_prediction, write_bf16
from typer.testing import CliRunner

import dynquant
from dynquant.arch.load import load_model
from dynquant.cli import app
from dynquant.errors import ArchitectureError, RecipeError
from dynquant.plan.plan import Plan
from dynquant.recipe.loader import parse_recipe

NEXTN = ("eh_proj", "enorm", "hnorm", "shared_head_norm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_prediction(tmp_path_factory.mktemp("v3") / "m")


def layer_3(plan: Plan) -> set[str]:
    return {t.name.removeprefix("blk.3.") for t in plan.tensors if t.name.startswith("blk.3.")}


@pytest.mark.parametrize("text", ["default: F32", "default: F32\nprediction_layers: drop"])
def test_prediction_layers_are_dropped_by_default_and_listed(folder: Path, text: str) -> None:
    plan = plan_of(folder, text)
    assert {t.name for t in plan.tensors} == {
        t.name for t in load_model(load_reference("deepseek-v3").folder).tensors
    }
    shard = folder / "model-00002-of-00002.safetensors"
    assert set(plan.ignored) == set(read_bf16(shard))
    assert set(plan.ignored.values()) == {
        "predicts further ahead; the recipe drops it (prediction_layers: drop)"
    }
    assert plan.keys["deepseek2.block_count"].value == N_LAYERS
    assert "deepseek2.nextn_predict_layers" not in plan.keys
    assert not plan.prediction


def test_kept_prediction_layers_change_the_keys_and_omit_copies(folder: Path) -> None:
    plan = plan_of(folder, "default: F32\nprediction_layers: keep")
    assert {f"nextn.{name}.weight" for name in NEXTN} <= layer_3(plan)
    assert {"attn_k_b.weight", "exp_probs_b.bias", "ffn_gate_exps.weight"} <= layer_3(plan)
    assert plan.ignored == {
        "model.layers.3.embed_tokens.weight": (
            "equal to token_embd.weight, which llama.cpp uses in its place"
        ),
        "model.layers.3.shared_head.head.weight": (
            "equal to output.weight, which llama.cpp uses in its place"
        ),
    }
    keys = list(plan.keys)
    assert plan.keys["deepseek2.block_count"].value == N_LAYERS + 1
    assert plan.keys["deepseek2.nextn_predict_layers"].value == 1
    assert keys.index("deepseek2.nextn_predict_layers") < keys.index("tokenizer.ggml.model")
    assert plan.prediction == range(3, 4)


def test_copy_that_differs_is_kept(folder: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "m"))
    path = changed / "model-00002-of-00002.safetensors"
    tensors = {name: x.copy() for name, x in read_bf16(path).items()}
    tensors["model.layers.3.shared_head.head.weight"][-1, -1] ^= 1
    write_bf16(path, tensors)
    plan = plan_of(changed, "default: F32\nprediction_layers: keep")
    assert "nextn.shared_head_head.weight" in layer_3(plan)
    assert list(plan.ignored) == ["model.layers.3.embed_tokens.weight"]


@pytest.mark.slow
def test_only_copies_may_be_missing(tmp_path: Path) -> None:
    plan = plan_of(
        with_prediction(tmp_path / "a", head=False), "default: F32\nprediction_layers: keep"
    )
    assert not plan.ignored
    incomplete = with_prediction(tmp_path / "b", without="model.layers.3.enorm.weight")
    with pytest.raises(ArchitectureError, match=r"model\.layers\.3\.enorm\.weight is missing"):
        load_model(incomplete)


def test_recipe_that_keeps_prediction_layers_fits_a_model_without_them() -> None:
    plan = plan_of(load_reference("deepseek-v3").folder, "default: F32\nprediction_layers: keep")
    assert plan.keys["deepseek2.block_count"].value == N_LAYERS
    assert not plan.prediction and not plan.ignored


def test_rules_select_prediction_layers_and_minus_one_is_the_last_other_layer(folder: Path) -> None:
    plan = plan_of(
        folder,
        "default: F16\nprediction_layers: keep\nrules:\n"
        "  - {role: [nextn.eh_proj], type: Q8_0}\n"
        "  - {layers: [3], role: ffn_down_shexp, type: F32}\n"
        "  - {layers: [-1], role: attn_output, type: BF16}\n"
        "  - {layers: [1--1], role: attn_q_a, type: BF16}\n",
    )
    types = {t.name: t.type.name for t in plan.tensors}
    assert types["blk.3.nextn.eh_proj.weight"] == "Q8_0"
    assert types["blk.3.ffn_down_shexp.weight"] == "F32"
    assert [types[f"blk.{i}.attn_output.weight"] for i in range(4)] == [
        "F16",
        "F16",
        "BF16",
        "F16",
    ]
    assert [types[f"blk.{i}.attn_q_a.weight"] for i in range(4)] == ["F16", "BF16", "BF16", "F16"]


def test_rule_for_dropped_layers_applies_to_no_tensor(folder: Path) -> None:
    with pytest.raises(RecipeError, match="applies to no tensor: the model has no nextn"):
        plan_of(folder, "default: F16\nrules: [{role: nextn.eh_proj, type: Q8_0}]")


def test_size_in_the_name_does_not_count_prediction_layers(folder: Path) -> None:
    alone = load_model(load_reference("deepseek-v3").folder).keys["general.size_label"]
    assert load_model(folder).keys["general.size_label"] == alone


@pytest.mark.parametrize("text", ["yes", "keeps", "[keep, drop]"])
def test_invalid_value_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:2:20: "):
        parse_recipe(f"default: F16\nprediction_layers: {text}", "r.yaml", "r")


@pytest.mark.slow
def test_plan_shows_whether_prediction_layers_are_kept_or_dropped(
    folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "keep.yaml"
    recipe.write_text("default: F16\nprediction_layers: keep\n")
    kept = CliRunner().invoke(app, ["plan", str(folder), "-r", str(recipe)])
    assert "layers 3 are for multi-token prediction (nextn)" in kept.stdout
    dropped = CliRunner().invoke(app, ["plan", str(folder), "-r", "f32"]).stdout
    lines = [line for line in dropped.splitlines() if line.startswith("ignored:")]
    assert len(lines) == 1 and " more: predicts further ahead" in lines[0]
    listed = CliRunner().invoke(app, ["plan", str(folder), "-r", str(recipe), "--json"]).stdout
    assert json.loads(listed)["prediction_layers"] == [3]


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("mla", ["split", "merged"])
@pytest.mark.parametrize("keep", ["drop", "keep"])
def test_results_do_not_depend_on_prediction_layers(
    folder: Path, tmp_path: Path, keep: str, mla: Any
) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference("deepseek-v3")
    out = tmp_path / f"{keep}.gguf"
    recipe = parse_recipe(f"default: F32\nprediction_layers: {keep}", "r.yaml", "r")
    dynquant.convert(folder, out, recipe=recipe, threads=1, mla=mla)
    written = {t.name for t in gguf.GGUFReader(out).tensors}
    assert ("blk.3.nextn.eh_proj.weight" in written) == (keep == "keep")
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE
