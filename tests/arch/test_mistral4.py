"""Mistral Small 4: its defaults, and the limits of llama.cpp's graph."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agreement import load_reference

from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError


def config_of(rope: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a reference with changes of its language model."""
    folder = load_reference("mistral4").folder
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    text = config["text_config"]
    text |= changes
    text["rope_parameters"] |= rope or {}
    return config


def test_queries_grow_after_the_original_context() -> None:
    keys = describe(config_of(), "config.json").keys
    assert keys["mistral4.attention.temperature_scale"].value == 0.3
    assert keys["mistral4.attention.temperature_length"].value == 8


def test_without_rope_parameters_those_of_the_class_apply() -> None:
    config = config_of()
    del config["text_config"]["rope_parameters"]
    keys = describe(config, "config.json").keys
    assert keys["mistral4.rope.scaling.factor"].value == 128
    assert keys["mistral4.attention.temperature_length"].value == 8192


def test_the_merged_layout_has_the_same_name_and_growth() -> None:
    merged = describe(config_of(), "config.json").merged
    assert merged is not None
    assert merged.name == "mistral4"
    assert "mistral4.attention.temperature_scale" in merged.keys


@pytest.mark.parametrize(
    ("rope", "changes", "message"),
    [
        ({"mscale_all_dim": 0.7, "mscale": 0.7}, {}, "mscale_all_dim is 0.7; llama.cpp computes"),
        ({"mscale": 0.7}, {}, "YaRN multiplies sines and cosines by"),
        ({"partial_rotary_factor": 0.5}, {}, "partial_rotary_factor is 0.5; the part of a head"),
        ({"llama_4_scaling_beta": None}, {}, "llama_4_scaling_beta is missing"),
        ({}, {"rope_interleave": False}, "rope_interleave is False"),
    ],
)
def test_settings_that_the_graph_cannot_compute_are_refused(
    rope: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        describe(config_of(rope, **changes), "config.json")
