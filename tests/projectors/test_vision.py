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


def test_another_factor_of_the_bytes_is_refused() -> None:
    assert "rescale_factor is 0.5; llama.cpp" in refusal("gemma3", {}, rescale_factor=0.5)
