"""MiniCPM-V's encoders: what llama.cpp fixes is refused, and how it cuts pictures is reported."""

from __future__ import annotations

from typing import Any

import pytest
from described import refusal, towers_of


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
