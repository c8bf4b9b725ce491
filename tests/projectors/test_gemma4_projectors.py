"""Gemma 4's encoders: what llama.cpp fixes is refused, and what differs for users is reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from described import FOLDER, refusal, towers_of

from dynquant.arch.load_projector import load_projector
from dynquant.errors import ArchitectureError
from dynquant.transforms import read_weights


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("vision_config.head_dim", 16, "llama.cpp divides hidden_size 24 by 3 heads"),
        ("vision_config.num_key_value_heads", 1, "llama.cpp computes as many as"),
        ("vision_config.rope_parameters.rope_theta", 10.0, "rope_theta is 10.0; llama.cpp"),
        ("vision_config.attention_bias", True, "attention_bias is true; llama.cpp"),
        ("vision_config.hidden_activation", "relu", "hidden_act is 'relu'; llama.cpp"),
        ("text_config.use_bidirectional_attention", None, "for the widths 1536 and 2560"),
        ("audio_config.hidden_act", "gelu", "hidden_act is 'gelu'; llama.cpp"),
        ("audio_config.conv_kernel_size", 3, "conv_kernel_size is 3; llama.cpp"),
        ("audio_config.attention_context_left", 9, "attention_context_left is 9; llama.cpp"),
        ("audio_config.rms_norm_eps", 1e-5, "rms_norm_eps is 1e-05; llama.cpp"),
        ("audio_config.subsampling_conv_channels", [64, 3], "the feature extractor has 128"),
        ("audio_config.num_attention_heads", 7, "is not a multiple of num_attention_heads 7"),
    ],
)
def test_settings_that_llama_cpp_fixes_are_refused(place: str, value: Any, message: str) -> None:
    assert message in refusal("gemma4.e", {place: value})


def test_another_feature_extractor_is_refused() -> None:
    assert "frame_length_ms is 32.0; llama.cpp computes 20.0" in refusal(
        "gemma4.e", {}, frame_length_ms=32.0
    )


def test_narrow_language_models_must_see_pictures_causally() -> None:
    changes = {"text_config.hidden_size": 1536}
    assert "use_bidirectional_attention is 'vision'" in refusal("gemma4", changes)
    assert towers_of("gemma4", {**changes, "text_config.use_bidirectional_attention": None})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("audio_config.audio_embed_dim", 320, "llama.cpp takes 640 samples for a token"),
        ("audio_config.rms_norm_eps", 1e-5, "rms_norm_eps is 1e-05; llama.cpp"),
        ("vision_config.output_proj_dims", 48, "output_proj_dims must be mm_embed_dim, 24"),
        ("vision_config.model_patch_size", 12, "must be patch_size times pooling_kernel_size, 8"),
    ],
)
def test_settings_without_encoders_are_refused_too(place: str, value: Any, message: str) -> None:
    assert message in refusal("gemma4unified", {place: value})


def test_warnings_state_how_pictures_and_sounds_are_prepared() -> None:
    seen, heard = (t.deviations for t in towers_of("gemma4.e", {}, images={"max_soft_tokens": 560}))
    assert len(seen) == len(heard) == 1
    assert "scales every picture to about 560 tokens" in seen[0]
    assert "llama.cpp raises weaker ones to 0.001" in heard[0]


def test_a_model_without_sounds_has_one_tower() -> None:
    without = [t.keys.get("clip.has_audio_encoder") for t in towers_of("gemma4", {})]
    with_sounds = [t.keys.get("clip.has_audio_encoder") for t in towers_of("gemma4.e", {})]
    assert (len(without), len(with_sounds)) == (1, 2)


def changed(folder: Path, name: str, bits: int | None) -> Path:
    """Copy a checkpoint with other bits of a bfloat16 under a name; None removes it."""
    copy = folder / "model"
    shutil.copytree(FOLDER / "gemma4.e", copy)
    path = copy / "model.safetensors"
    stored = path.read_bytes()
    start = 8 + int.from_bytes(stored[:8], "little")
    header: dict[str, Any] = json.loads(stored[8:start])
    if bits is not None:
        at = start + header[name]["data_offsets"][0]
        stored = stored[:at] + bits.to_bytes(2, "little") + stored[at + 2 :]
    else:
        header[f"{name}_unknown"] = header.pop(name)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + stored[start:])
    return copy


INFINITE = 0x7F80
BOUND = "model.vision_tower.encoder.layers.0.mlp.up_proj.output_max"


def test_an_infinite_bound_is_the_largest_float32(tmp_path: Path) -> None:
    copy = changed(tmp_path, BOUND, INFINITE)
    tensors = {t.name: t for t in load_projector(copy).tensors}
    found = tensors["v.blk.0.ffn_up.output_max"]
    assert found.shape == (1,)
    assert read_weights(found.source, 0, 1) == np.finfo(np.float32).max


def test_a_missing_bound_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError) as e:
        load_projector(changed(tmp_path, BOUND, None))
    assert BOUND in str(e.value)


def test_sounds_of_a_model_without_such_settings_are_reported(tmp_path: Path) -> None:
    copy = changed(tmp_path, BOUND, INFINITE)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["audio_config"] = None
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ArchitectureError) as e:
        load_projector(copy)
    assert "audio_tower" in str(e.value)
