"""LFM2-VL: refusals, and pictures that llama.cpp prepares otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from described import refusal, towers_of
from handmade import weights

from dynquant.arch.projectors.lfm2_vl import kernel
from dynquant.tensors import Computed
from dynquant.transforms import read_weights


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        ({"downsample_factor": 1}, {}, "downsample_factor is 1; llama.cpp computes 2 and more"),
        ({"projector_hidden_act": "relu"}, {}, "projector_hidden_act is 'relu'; llama.cpp"),
        ({"projector_bias": False}, {}, "projector_bias is false; llama.cpp needs biases"),
        ({"vision_feature_layer": -2}, {}, "vision_feature_layer is -2; only the output of"),
        ({"vision_config.num_patches": 35}, {}, "num_patches is 35, which is no square"),
        ({"vision_config.num_channels": 1}, {}, "num_channels is 1; llama.cpp computes"),
        ({}, {"encoder_patch_size": 14}, "encoder_patch_size is 14, but config.json implies 16"),
        ({}, {"do_rescale": False}, "do_rescale is false; llama.cpp always does it"),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    changes: dict[str, Any], images: dict[str, Any], message: str
) -> None:
    assert message in refusal("lfm2vl", changes, **images)


def test_other_ways_to_prepare_pictures_are_reported_together() -> None:
    """As LiquidAI/LFM2-VL-450M, whose config.json has the settings of its processor, too."""
    assert [t.deviations for t in towers_of("lfm2vl", {"tile_size": 512, "min_tiles": 2})] == [()]
    (tower,) = towers_of("lfm2vl", {"use_thumbnail": False}, images={"use_thumbnail": None})
    assert "use_thumbnail false; llama.cpp computes use_thumbnail true" in tower.deviations[0]
    (tower,) = towers_of("lfm2vl", {}, images={"use_thumbnail": False, "max_image_tokens": 400})
    assert len(tower.deviations) == 1
    assert "use_thumbnail false, max_image_tokens 400; llama.cpp computes" in tower.deviations[0]
    assert tower.deviations[0].endswith(
        "llama.cpp computes use_thumbnail true, max_image_tokens 256"
    )


@pytest.mark.parametrize("has_norm", [True, False])
def test_the_norm_before_the_projector_is_optional(has_norm: bool) -> None:
    (tower,) = towers_of("lfm2vl", {"projector_use_layernorm": has_norm})
    names = {row.name for row in tower.rows}
    assert ({"mm.input_norm.weight", "mm.input_norm.bias"} <= names) == has_norm


def test_a_patch_embedding_becomes_a_convolution() -> None:
    stored = weights(5, 4 * 4 * 3)
    found = kernel(Computed(stored))
    expected = stored.reshape(5, 4, 4, 3).transpose(0, 3, 1, 2)
    assert found.shape == (5, 3, 4, 4)
    for start, stop in ((0, 60), (7, 19), (59, 60)):
        rows = expected.reshape(60, 4)[start:stop]
        np.testing.assert_array_equal(read_weights(found, start, stop), rows)
