"""Gemma 3 as published: in a multimodal model, and with few settings in its config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import TESTS
from checkpoints import write_holes
from places import shared

from dynquant.arch.base import Model
from dynquant.arch.gather import gather
from dynquant.arch.load import describe, load_model
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import ArchitectureError
from dynquant.transforms import read_weights

TEXT = TESTS / "references" / "gemma3"


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


def rename_tensors(path: Path, rename: Callable[[str], str], added: list[str]) -> None:
    """Rename the tensors of a safetensors file, and append tensors of two BF16 weights."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    tensors = {rename(k): v for k, v in header.items() if k != "__metadata__"}
    end = len(content) - 8 - n
    for i, name in enumerate(added):
        place = [end + 4 * i, end + 4 * i + 4]
        tensors[name] = {"dtype": "BF16", "shape": [2], "data_offsets": place}
    text = json.dumps(tensors).encode()
    data = content[8 + n :] + bytes(4 * len(added))
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def without_names(model: Model) -> dict[str, Any]:
    return {k: v for k, v in model.keys.items() if not k.startswith("general.")}


@pytest.mark.parametrize(
    ("trunk", "seeing"),
    [
        ("language_model.model.", ["vision_tower.a.weight", "multi_modal_projector.b"]),
        ("model.language_model.", ["model.vision_tower.a.bias", "model.multi_modal_projector.b"]),
    ],
)
def test_text_model_of_a_multimodal_model_equals_the_plain_model(
    trunk: str, seeing: list[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(TEXT, tmp_path / "sees")
    text_config = config_of(TEXT)
    del text_config["architectures"]
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text_config}
    (folder / "config.json").write_text(json.dumps(outer), "utf-8")
    rename_tensors(
        folder / "model.safetensors", lambda name: name.replace("model.", trunk, 1), seeing
    )
    ours, expected = load_model(folder), load_model(TEXT)
    assert set(ours.ignored) == set(seeing)
    assert all("mmproj" in reason for reason in ours.ignored.values())
    assert without_names(ours) == without_names(expected)
    for a, b in zip(ours.tensors, expected.tensors, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(
            read_weights(a.source, 0, a.n_rows), read_weights(b.source, 0, b.n_rows)
        )


def test_missing_settings_default_to_those_of_transformers() -> None:
    """The settings in google/gemma-3-4b-it."""
    said = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": said}
    found = describe(outer, "")
    values = {key.removeprefix("gemma3."): value.value for key, value in found.keys.items()}
    assert found.sizes["vocab"] == 262208
    assert values == {
        "block_count": 34,
        "context_length": 131072,
        "embedding_length": 2560,
        "feed_forward_length": 10240,
        "attention.head_count": 8,
        "attention.head_count_kv": 4,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 1024,
        "rope.freq_base": 1000000.0,
        "rope.freq_base_swa": 10000.0,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }


@pytest.mark.shared
def test_gemma_3_27b_has_a_tensor_for_each_of_its_names(tmp_path: Path) -> None:
    folder = shared("configs/gemma-3-27b-medgemma")
    config = config_of(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    architecture = describe(config, "")
    by_name = {row.stored: row for row in architecture.rows}

    def shape(name: str) -> tuple[int, ...]:
        bare = name.removeprefix("language_model.")
        parts = bare.split(".")
        if parts[:2] == ["model", "layers"]:
            bare = ".".join([*parts[:2], "{}", *parts[3:]])
        return tuple(architecture.sizes[s] for s in by_name[bare].shape.split())

    shapes = {
        name: shape(name) if name.startswith("language_model.") else (1,)
        for name in index["weight_map"]
    }
    checkpoint = open_checkpoint(write_holes(tmp_path, config, shapes))
    tensors, ignored, _ = gather(architecture, checkpoint)
    assert len(tensors) + len(ignored) == len(index["weight_map"])
    assert (architecture.sizes["q"], architecture.sizes["kv"]) == (32 * 128, 16 * 128)
    # llama.cpp recognises the 27B by its layers and scales as config.json states.
    (q_norm,) = (t for t in tensors if t.name == "blk.0.attn_q_norm.weight")
    np.testing.assert_array_equal(read_weights(q_norm.source, 0, 1), np.ones((1, 128), np.float32))


REFUSED = (
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "is null"),
    ("Gemma2ForCausalLM", {"final_logit_softcapping": None}, "is null"),
    ("Gemma2ForCausalLM", {"layer_types": ["full_attention"] * 3}, "needs at least one such layer"),
    ("Gemma2ForCausalLM", {"layer_types": ["sliding_attention"]}, "has 1 entries"),
    ("Gemma2ForCausalLM", {"layer_types": ["chunked_attention"] * 3}, "has 'chunked_"),
    ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "does not cap attention"),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "causal attention"),
    ("Gemma3ForCausalLM", {"attention_bias": True}, "no bias on o_proj"),
    ("Gemma3ForCausalLM", {"hidden_activation": "relu"}, "'relu'"),
    (
        "Gemma3ForCausalLM",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "does not compute rope_type 'linear'",
    ),
)


@pytest.mark.parametrize(("name", "changes", "says"), REFUSED)
def test_settings_that_llama_cpp_does_not_compute_are_rejected(
    name: str, changes: dict[str, Any], says: str
) -> None:
    family = "gemma2" if name == "Gemma2ForCausalLM" else "gemma3"
    config = config_of(TESTS / "references" / family) | changes
    with pytest.raises(ArchitectureError, match=says):
        describe(config, "config.json")
