"""Llama 4: what llama.cpp's graph has as constants is refused with other values."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from agreement import load_reference

from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    path = load_reference("llama4").folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    config["text_config"].update(changes)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_chunk_size": None}, "attention_chunk_size is null; llama.cpp .* with 8192"),
        ({"attention_chunk_size": 512}, "attention_chunk_size is 512; llama.cpp .* with 8192"),
        ({"floor_scale": 4096}, "floor_scale is 4096; llama.cpp computes .* with 8192"),
        ({"attn_scale": 0.2}, "attn_scale is 0.2; llama.cpp computes this family with 0.1"),
        ({"attn_temperature_tuning": False}, "attn_temperature_tuning is false; .* with true"),
        ({"attention_bias": True}, "attention_bias is True; llama.cpp computes .* with False"),
        ({"use_qk_norm": False}, "use_qk_norm is False; llama.cpp .* with True for 5 experts"),
        ({"num_local_experts": 128}, "use_qk_norm is True; .* with False for 128 experts"),
        ({"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers .* name other layers than every"),
        (
            {"no_rope_layers": [], "no_rope_layer_interval": 2},
            "no_rope_layer_interval name other layers than every fourth",
        ),
        ({"layer_types": ["full_attention"] * 5}, "layer_types does not have 'full_attention' in"),
        ({"moe_layers": [0, 3]}, "moe_layers differs from the layers of interleave_moe_layer_step"),
    ],
)
def test_other_values_than_the_graphs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as e:
        describe(changed(changes), "config.json")
    assert re.match(f"config.json: .*{message}", str(e.value))


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_temperature_tuning": 4},  # as in the first files
        {"no_rope_layers": []},
        {"num_local_experts": 128, "use_qk_norm": False},
        {"moe_layers": None, "layer_types": None},
    ],
)
def test_other_forms_of_these_values_are_accepted(changes: dict[str, Any]) -> None:
    assert describe(changed(changes), "config.json").deviations == ()
