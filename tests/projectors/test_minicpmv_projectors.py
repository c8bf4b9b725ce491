"""MiniCPM-V's encoders: what llama.cpp fixes is refused, and how it cuts pictures is reported."""

from __future__ import annotations

import json
from typing import Any

import pytest
from described import FOLDER, refusal, towers_of

from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("insert_layer_id", 3, "insert_layer_id is 3, and the encoder has 3 layers"),
        ("vision_config.insert_layer_id", 2, "insert_layer_id is 1, and 2 in vision_config"),
        ("merger_times", 2, "merger_times is 2"),
        ("merge_kernel_size", [4, 4], "merge_kernel_size [4, 4]; llama.cpp merges 2 x 2"),
        ("vision_config.window_kernel_size", [4, 4], "window_kernel_size is [4, 4]; llama.cpp"),
        ("vision_config.image_size", 224, "llama.cpp computes 70 patches of a side"),
        ("vision_config.intermediate_size", 8, "intermediate_size equal to hidden_size"),
        ("downsample_mode", "8x", "downsample_mode is '8x'"),
    ],
)
def test_settings_that_llama_cpp_fixes_are_refused(place: str, value: Any, message: str) -> None:
    assert message in refusal("minicpmv4.6", {place: value})


def test_another_limit_of_slices_is_refused() -> None:
    assert "llama.cpp cuts pictures into at most 9" in refusal("minicpmv4.6", {}, max_slice_nums=4)


def test_two_modes_that_disagree_are_refused() -> None:
    assert "make them equal" in refusal("minicpmv4.6", {}, downsample_mode="4x")


def test_how_pictures_are_cut_is_reported() -> None:
    (found,) = towers_of("minicpmv4.6", {})
    assert ["pads larger ones with black" in text for text in found.deviations] == [True]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("version", 2.5, "version is 2.5; supported for MiniCPMV are 2.6, 4.0, 4.5"),
        ("hidden_size", 192, "width 192 is not a multiple of 128"),
        ("vision_config.layer_norm_eps", 1e-5, "layer_norm_eps is 1e-05; llama.cpp"),
        ("vision_config.num_channels", 1, "num_channels is 1; llama.cpp"),
        ("vision_config.patch_size", 8, "llama.cpp computes 70 patches of a side"),
    ],
)
def test_settings_with_queries_are_refused_too(place: str, value: Any, message: str) -> None:
    assert message in refusal("minicpmv2.6", {place: value})


def test_a_dropped_layer_is_not_in_the_file() -> None:
    (found,) = towers_of("minicpmv2.6", {"drop_vision_last_layer": True})
    assert found.n_layers == found.keys["clip.vision.block_count"].value == 2


@pytest.mark.parametrize(
    ("version", "number", "architecture"),
    [(2.6, 3, "qwen2"), ("4.0", 5, "llama"), ("4.5", 6, "qwen3")],
)
def test_the_version_names_the_language_model(version: Any, number: int, architecture: str) -> None:
    (found,) = towers_of("minicpmv2.6", {"version": version})
    assert found.keys["clip.minicpmv_version"].value == number
    config: dict[str, Any] = json.loads((FOLDER / "minicpmv2.6/config.json").read_text("utf-8"))
    assert describe({**config, "version": version}, "c").name == architecture


def test_another_version_has_no_known_language_model() -> None:
    config: dict[str, Any] = json.loads((FOLDER / "minicpmv2.6/config.json").read_text("utf-8"))
    with pytest.raises(ArchitectureError, match=r"version is 2\.0; supported for MiniCPMV are"):
        describe({**config, "version": 2.0}, "c")
