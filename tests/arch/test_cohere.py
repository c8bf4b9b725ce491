"""Settings of Command-R and StarCoder2 that llama.cpp's graphs do not compute."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agreement import TESTS

from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError

REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("command-r", {"use_qk_norm": True}, "use_qk_norm is true and num_hidden_layers 2"),
    ("command-r-plus", {"use_qk_norm": False}, "use_qk_norm is false and num_hidden_layers 64"),
    ("command-r", {"attention_bias": True}, "without biases"),
    ("command-r", {"head_dim": 12}, "4 heads of 12 weights do not add up to hidden_size 32"),
    ("command-r", {"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
    ("cohere2", {"sliding_window": None}, "sliding_window is missing"),
    ("starcoder2", {"use_bias": False}, "needs biases"),
    ("starcoder2", {"num_attention_heads": 3}, "not a multiple"),
    ("starcoder2", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
)


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_settings_that_llama_cpp_does_not_compute_are_rejected(
    family: str, changes: dict[str, Any], says: str
) -> None:
    text = (TESTS / "references" / family / "config.json").read_text("utf-8")
    with pytest.raises(ArchitectureError, match=says):
        describe(json.loads(text) | changes, "config.json")
