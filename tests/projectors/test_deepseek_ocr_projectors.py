"""DeepSeek-OCR's encoders: what llama.cpp fixes is refused, and tiles are reported."""

from __future__ import annotations

from typing import Any

import pytest
from described import refusal, towers_of

SAM = "vision_config.width.sam_vit_b"
CLIP = "vision_config.width.clip-l-14-224"


@pytest.mark.parametrize(
    ("case", "place", "value", "message"),
    [
        ("deepseek-ocr", f"{SAM}.global_attn_indexes", [1], "llama.cpp computes the layers 2, 5"),
        ("deepseek-ocr-2", f"{SAM}.global_attn_indexes", [0, 2], "global_attn_indexes is [0, 2]"),
        ("deepseek-ocr", f"{SAM}.heads", 3, "width 8 is not a multiple of 3 heads"),
        ("deepseek-ocr", f"{SAM}.downsample_channels", [10, 12], "but CLIP has width 16"),
        ("deepseek-ocr", CLIP, None, "has no clip-l-14-224; download config.json again"),
        ("deepseek-ocr", "vision_config.image_size", 640, "image_size is 640; llama.cpp"),
        ("deepseek-ocr-2", "vision_config.patch_size", 14, "patch_size is 14; llama.cpp"),
    ],
)
def test_settings_that_llama_cpp_fixes_are_refused(
    case: str, place: str, value: Any, message: str
) -> None:
    assert message in refusal(case, {place: value})


@pytest.mark.parametrize(("case", "tile"), [("deepseek-ocr", 640), ("deepseek-ocr-2", 768)])
def test_tiles_are_reported(case: str, tile: int) -> None:
    (found,) = towers_of(case, {})
    assert [f"pictures larger than {tile} pixels" in text for text in found.deviations] == [True]


def test_the_second_encoders_own_code_has_settings_that_config_json_omits() -> None:
    """The published file has only the width, 896."""
    stated = {
        "vision_config.layers": None,
        "vision_config.num_attention_heads": None,
        "vision_config.intermediate_size": None,
        "vision_config.width.qwen2-0-5b.dim": 896,
    }
    (found,) = towers_of("deepseek-ocr-2", stated)
    names = ("block_count", "attention.head_count", "feed_forward_length")
    assert [found.keys[f"clip.vision.{name}"].value for name in names] == [24, 14, 4864]
    assert found.sizes["kv"] == 128
