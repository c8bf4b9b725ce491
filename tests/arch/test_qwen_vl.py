"""Qwen3-VL and Qwen3-Omni: layers with features of images, and experts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agreement import load_reference

from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError


def config(family: str) -> dict[str, Any]:
    path = load_reference(family).folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize("family", ["qwen3vl", "qwen3vlmoe"])
def test_features_of_images_in_all_layers_are_refused(family: str) -> None:
    """llama.cpp stops at such a file: of the last layer's tokens it has only those with output."""
    changed = config(family)
    changed["vision_config"]["deepstack_visual_indexes"] = [0, 1, 2]
    with pytest.raises(ArchitectureError, match="has 3 entries for num_hidden_layers 3;"):
        describe(changed, "config.json")


def test_features_of_images_are_counted_inside_the_thinker() -> None:
    found = describe(config("qwen3omnimoe"), "config.json")
    assert found.keys["qwen3vlmoe.n_deepstack_layers"].value == 2


def test_weights_of_experts_that_do_not_sum_to_one_are_refused() -> None:
    changed = config("qwen3omnimoe")
    changed["thinker_config"]["text_config"]["norm_topk_prob"] = False
    with pytest.raises(ArchitectureError, match="norm_topk_prob is False;"):
        describe(changed, "config.json")


def test_heads_fill_the_hidden_size_if_their_size_is_not_stated() -> None:
    changed = config("qwen3vlmoe")
    text = changed["text_config"]
    text.update(head_dim=None, num_attention_heads=2, num_key_value_heads=1)
    text["rope_parameters"]["mrope_section"] = [3, 3, 2]
    found = describe(changed, "config.json")
    assert found.keys["qwen3vlmoe.attention.key_length"].value == 16
