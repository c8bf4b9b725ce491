"""What a file does not contain is one warning for each kind, with where it is available."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import config_of, tensors_of, write_checkpoint
from handmade import model, recipe
from safetensors.numpy import save_file

from dynquant.arch import encoder
from dynquant.arch.families import gemma
from dynquant.arch.load import load_model
from dynquant.arch.wrapped import OTHER_PARTS
from dynquant.plan.left_out import left_out
from dynquant.plan.make import make_plan
from dynquant.plan.settle_prediction import _DROPPED  # pyright: ignore[reportPrivateUsage]

TOWER = {
    f"vision_tower.encoder.layers.{i}.self_attn.{p}_proj.weight": "the vision model, as stated"
    for i in range(27)
    for p in "qk"
}


def test_a_vision_tower_is_one_warning() -> None:
    more = {"multi_modal_projector.mm_norm.weight": "the vision model, as stated"}
    (warning,) = left_out(TOWER | more)
    assert warning.startswith("left out: 55 tensors, vision_tower.encoder.layers.{0-26}.self_attn.")
    assert warning.endswith(" and others: the vision model, as stated")


def test_each_kind_has_a_separate_warning() -> None:
    ahead = {"model.layers.61.eh_proj.weight": _DROPPED}
    found = [
        *left_out(
            TOWER | {"audio_tower.conv1.weight": "the audio model", **ahead, "pooler.w": "for x"}
        )
    ]
    assert [w.rpartition(": ")[2].partition(",")[0].partition(";")[0] for w in found] == [
        "the vision model",
        "the audio model",
        "keep`",
        "for x",
    ]
    assert "prediction_layers: keep" in found[2]


def test_families_state_what_is_lost_and_only_that_is_a_warning() -> None:
    """Frequencies and positions are computed again, so that nothing is lost without them."""
    patterns = [
        *gemma.gemma3(config_of("x", num_key_value_heads=None) | GEMMA, "c").ignored.items(),
        *OTHER_PARTS.items(),
        *encoder.IGNORED.items(),  # pyright: ignore[reportPrivateUsage]
    ]
    found = [*left_out(dict(patterns))]
    assert len(found) == len({why for _, why in patterns}) - 2


GEMMA = {"head_dim": 4, "sliding_window": 8, "hidden_activation": "gelu_pytorch_tanh"}


@pytest.mark.parametrize(
    "reason",
    [
        "equal to model.embed_tokens.weight, which llama.cpp uses in its place",
        "zero in every element, and the model has no such bias",
        "llama.cpp computes the rotary frequencies from the rope keys",
        "scales of activations; llama.cpp does not quantize activations in advance",
        "dropped by recipes/x.yaml:3",
    ],
)
def test_tensors_that_change_nothing_are_no_warning(reason: str) -> None:
    assert [*left_out({"a.weight": reason})] == []


def test_the_plan_has_the_warnings() -> None:
    plan = make_plan(replace(model(), ignored=dict(TOWER)), recipe())
    assert [w for w in plan.warnings if w.startswith("left out: ")] == [*left_out(TOWER)]


def warnings_beside(folder: Path, *names: str) -> list[str]:
    config = config_of("LlamaForCausalLM")
    write_checkpoint(folder, config, tensors_of(config))
    for name in names:
        save_file({"x": np.ones(1, np.float32)}, folder / name)
    return [w for w in load_model(folder, needs_vocab=False).deviations if "left out" in w]


def test_adapter_files_beside_the_weights_are_a_warning(tmp_path: Path) -> None:
    (warning,) = warnings_beside(tmp_path, "adapter_model.safetensors")
    assert warning.startswith("left out: adapter_model.safetensors: an adapter beside the model")
    assert "--merge-adapter FOLDER" in warning


def test_other_weights_that_the_index_does_not_list_are_a_warning(tmp_path: Path) -> None:
    names = tensors_of(config_of("LlamaForCausalLM"))
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (warning,) = warnings_beside(tmp_path, "mtp.safetensors", "value_head.safetensors")
    assert warning.startswith("left out: mtp.safetensors and 1 more: the model's index does not")


def test_other_weights_without_an_index_are_a_warning(tmp_path: Path) -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (warning,) = warnings_beside(tmp_path, *shards)
    assert warning == (
        f"left out: {shards[0]} and 1 more: without model.safetensors.index.json it is not read; if"
        " it belongs to the model, add that file"
    )


def test_the_same_weights_in_mistrals_layout_are_no_warning(tmp_path: Path) -> None:
    assert warnings_beside(tmp_path, "consolidated.safetensors") == []
