"""What all vision encoders have in common: settings that llama.cpp cannot compute."""

from __future__ import annotations

from typing import Any

import pytest
from described import refusal, towers_of


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config.num_attention_heads": 7}, "is not a multiple of its 7 heads"),
        ({"vision_config.intermediate_size": 24}, "take the feed-forward's two matrices for each"),
        ({"vision_config.hidden_act": "relu"}, "hidden_act is 'relu'; llama.cpp computes vision"),
        ({"vision_config.patch_size": "14"}, "patch_size is '14', but"),
        ({"mm_tokens_per_image": 10}, "mm_tokens_per_image is 10; llama.cpp pools squares of"),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    assert message in refusal("gemma3", changes)


def test_a_feed_forward_as_wide_as_the_encoder_is_read_where_llama_cpp_keeps_it() -> None:
    (tower,) = towers_of("qwen3vl", {"vision_config.intermediate_size": 24})
    assert tower.sizes["ffn"] == tower.sizes["hidden"] == 24


_SQUARE = {"height": 99, "width": 99}


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("deepseek-ocr", {"patch_size": 99}),
        ("deepseek-ocr-2", {"patch_size": 99}),
        ("gemma3", {"size": _SQUARE, "image_seq_length": 99}),
        ("gemma4", {"patch_size": 99, "pooling_kernel_size": 99}),
        ("gemma4unified", {"patch_size": 99, "pooling_kernel_size": 99}),
        ("glm4v", {"patch_size": 99, "merge_size": 99, "temporal_patch_size": 99}),
        ("glm-ocr", {"patch_size": 99}),
        ("glm5next", {"merge_size": 99}),
        ("idefics3", {"max_image_size": {"longest_edge": 99}}),
        ("internvl", {"size": _SQUARE, "crop_size": 99}),
        ("internvl-chat", {"size": 99}),
        ("janus", {"size": _SQUARE}),
        ("kimik25", {"patch_size": 99, "merge_kernel_size": 99}),
        ("kimivl", {"patch_size": 99, "merge_kernel_size": [2, 99]}),
        ("lfm2vl", {"encoder_patch_size": 99, "downsample_factor": 99}),
        ("lightonocr", {"patch_size": _SQUARE, "spatial_merge_size": 99}),
        ("llava", {"crop_size": _SQUARE}),
        ("llava-siglip", {"size": {"height": 84, "width": 99}}),
        ("minicpmv2.6", {"patch_size": 99}),
        ("minicpmv4.6", {"patch_size": 99}),
        ("mistral3", {"patch_size": _SQUARE, "spatial_merge_size": 99}),
        ("pixtral", {"patch_size": 99}),
        ("qwen2.5omni", {"patch_size": 99}),
        ("qwen2vl", {"patch_size": 99, "merge_size": 99, "temporal_patch_size": 99}),
        ("qwen3omni", {"merge_size": 99}),
        ("qwen3vl", {"patch_size": "99", "merge_size": True}),
        ("smolvlm", {"max_image_size": {"longest_edge": 99}}),
    ],
)
def test_settings_of_the_processor_that_config_json_contradicts_are_refused(
    case: str, settings: dict[str, Any]
) -> None:
    found = refusal(case, {}, **settings)
    assert all(f"image processor: {name} is " in found for name in settings)


def test_a_processor_may_count_pixels_of_patches_that_are_merged() -> None:
    assert towers_of("mistral3", {}, images={"patch_size": {"height": 14, "width": 14}})


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (0.5, "image_mean is 0.5, but should be a list"),
        ([0.5], "image_mean has too few entries"),
        ([0.5, 0.5, "a"], "image_mean.2 is 'a', but should be a valid number"),
        (None, "image_mean is missing"),
    ],
)
def test_means_that_are_not_of_three_colours_get_one_message(mean: Any, message: str) -> None:
    (line,) = refusal("gemma3", {}, image_mean=mean).splitlines()
    assert message in line


def test_a_layer_is_deepstacked_once() -> None:
    found = refusal("qwen3vl", {"vision_config.deepstack_visual_indexes": [0, 0]})
    assert "deepstack_visual_indexes is [0, 0]; each layer may be there once" in found


def test_another_factor_of_the_bytes_is_refused() -> None:
    assert "rescale_factor is 0.5; llama.cpp" in refusal("gemma3", {}, rescale_factor=0.5)
