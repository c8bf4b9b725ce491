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


@pytest.mark.parametrize(
    ("case", "changes", "images", "message"),
    [
        ("gemma3", {}, {"do_pan_and_scan": True}, "do_pan_and_scan is true; llama.cpp shows the"),
        ("internvl", {}, {"crop_to_patches": False}, "crop_to_patches is false; llama.cpp always"),
        ("internvl-chat", {"dynamic_image_size": False}, {}, "is false; llama.cpp computes true"),
        ("internvl-chat", {"pad2square": True}, {}, "pad2square is true; llama.cpp computes false"),
        ("minicpmv2.6", {}, {"slice_mode": False}, "slice_mode is false; llama.cpp always cuts"),
        ("minicpmv4.6", {}, {"slice_mode": False}, "slice_mode is false; llama.cpp always cuts"),
        ("qwen2vl", {}, {"max_pixels": 12845056}, "up to 16384 tokens for a picture; llama.cpp pe"),
        ("kimivl", {}, {"in_token_limit": 64}, "up to 16 tokens for a picture; llama.cpp permits"),
        ("glm4v", {}, {"size": {"longest_edge": 14112}}, "up to 9 tokens for a picture"),
        ("pixtral", {}, {"size": {"longest_edge": 56}}, "up to 16 tokens for a picture"),
    ],
)
def test_other_ways_to_prepare_pictures_are_reported(
    case: str, changes: dict[str, Any], images: dict[str, Any], message: str
) -> None:
    def reported(*changed: dict[str, Any]) -> set[str]:
        return {d for t in towers_of(case, changed[0], images=changed[1]) for d in t.deviations}

    (line,) = reported(changes, images) - reported({}, {})
    assert message in line


@pytest.mark.parametrize("case", ["gemma4", "glm4v", "kimivl", "pixtral", "qwen2.5vl", "qwen3vl"])
@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_theta": 99.5}, "rope_theta is 99.5; llama.cpp computes 1"),
        ({"rope_type": "linear", "factor": 2.0}, "rope_type is 'linear'; llama.cpp does not scale"),
        ("x", "rope_parameters is 'x', not an object"),
    ],
)
def test_other_rotations_are_refused(case: str, rope: Any, message: str) -> None:
    assert message in refusal(case, {"vision_config.rope_parameters": rope})


@pytest.mark.parametrize("edge", ["1540", True, 0, -1, 1540.5])
@pytest.mark.parametrize("case", ["glm4v", "lightonocr", "mistral3", "qwen3vl"])
def test_edges_of_pictures_that_are_no_number_of_pixels_are_refused(case: str, edge: Any) -> None:
    found = refusal(case, {}, size={"longest_edge": edge}, max_pixels=None)
    assert f"size.longest_edge is {edge!r}, but should be" in found


def test_limits_of_pictures_that_exclude_each_other_are_refused() -> None:
    found = refusal("qwen2vl", {}, min_pixels=7840, max_pixels=784)
    assert "pictures have at least 7840 and at most 784 pixels" in found


@pytest.mark.parametrize("layer", [True, "-2", -2.5])
def test_a_layer_of_features_is_a_whole_number(layer: Any) -> None:
    assert "vision_feature_layer is" in refusal("llava", {"vision_feature_layer": layer})


def test_null_leaves_a_setting_at_the_default_of_the_encoder() -> None:
    nulls = {"vision_config.hidden_act": None, "vision_config.layer_norm_eps": None}
    (tower,) = towers_of("llava", nulls)
    assert "clip.use_gelu" not in tower.keys
    assert tower.keys["clip.vision.attention.layer_norm_epsilon"].value == 1e-5


def test_a_layer_is_deepstacked_once() -> None:
    found = refusal("qwen3vl", {"vision_config.deepstack_visual_indexes": [0, 0]})
    assert "deepstack_visual_indexes is [0, 0]; each layer may be there once" in found


def test_another_factor_of_the_bytes_is_refused() -> None:
    assert "rescale_factor is 0.5; llama.cpp" in refusal("gemma3", {}, rescale_factor=0.5)
