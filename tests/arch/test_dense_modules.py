"""Dense modules of EmbeddingGemma: what llama.cpp cannot compute is refused.

Their numbers are checked by the reference gemma-embedding in test_families.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from safetensors.numpy import save_file

from dynquant.arch.load import load_model
from dynquant.errors import DynquantError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(load_reference("gemma-embedding").folder, tmp_path / "model")


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings))


def refusal(folder: Path) -> tuple[str, ...]:
    with pytest.raises(DynquantError) as error:
        load_model(folder)
    return error.value.messages


def test_dense_modules_are_tensors_with_keys_of_their_sizes(folder: Path) -> None:
    model = load_model(folder)
    shapes = {t.name: t.shape for t in model.tensors if t.name.startswith("dense_")}
    assert shapes == {"dense_2.weight": (44, 32), "dense_3.weight": (32, 44)}
    sizes = {k: v.value for k, v in model.keys.items() if "_feat_" in k}
    assert sizes == {
        "gemma-embedding.dense_2_feat_in": 32,
        "gemma-embedding.dense_2_feat_out": 44,
        "gemma-embedding.dense_3_feat_in": 44,
        "gemma-embedding.dense_3_feat_out": 32,
    }


def test_without_dense_modules_there_are_no_such_tensors(folder: Path) -> None:
    path = folder / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))[:2]))
    model = load_model(folder)
    assert not [t for t in model.tensors if t.name.startswith("dense_")]


def test_a_single_dense_module_is_refused(folder: Path) -> None:
    path = folder / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))[:3]))
    (message,) = refusal(folder)
    assert message.endswith("modules.json has 1 Dense modules; llama.cpp computes 2 or none")


def test_bias_and_activation_are_refused_together(folder: Path) -> None:
    change(folder / "2_Dense" / "config.json", bias=True, activation_function="torch.nn.Tanh")
    first, second = refusal(folder)
    assert "bias is true" in first
    assert "activation_function is 'torch.nn.Tanh'" in second


def test_a_matrix_of_another_shape_is_refused(folder: Path) -> None:
    save_file(
        {"linear.weight": np.ones((44, 31), np.float32)}, folder / "2_Dense" / "model.safetensors"
    )
    (message,) = refusal(folder)
    assert "linear.weight is F32 [44, 31], but must be floats of shape [44, 32]" in message


def test_sizes_that_do_not_follow_each_other_are_refused(folder: Path) -> None:
    change(folder / "3_Dense" / "config.json", in_features=40)
    save_file(
        {"linear.weight": np.ones((32, 40), np.float32)}, folder / "3_Dense" / "model.safetensors"
    )
    (message,) = refusal(folder)
    assert "Dense modules of 32 to 44 and 40 to 32 weights do not lead" in message


def test_causal_attention_is_refused(folder: Path) -> None:
    change(folder / "config.json", use_bidirectional_attention=False)
    (message,) = refusal(folder)
    assert "use_bidirectional_attention is not true" in message


def test_other_families_with_dense_modules_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(load_reference("bert").folder, tmp_path / "model")
    path = folder / "modules.json"
    modules = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    (message,) = refusal(folder)
    assert "llama.cpp does not compute a module of type 'Dense'" in message
