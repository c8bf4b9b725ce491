"""Idefics3 and SmolVLM: tiles, refusals, and settings that are not stated."""

from __future__ import annotations

from typing import Any

import pytest
from described import refusal, towers_of


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        (
            {"scale_factor": 1},
            {},
            "scale_factor of config.json is 1; llama.cpp joins squares of at",
        ),
        ({"scale_factor": 3}, {}, "of the 4 x 4 patches of a tile"),
        ({"vision_config.image_size": 70}, {}, "max_image_size is 56; llama.cpp takes tiles of"),
        ({"vision_config.hidden_act": "relu"}, {}, "hidden_act is 'relu'; llama.cpp computes"),
        ({"vision_config.num_channels": 4}, {}, "num_channels is 4; llama.cpp computes"),
        ({}, {"size": {"height": 56, "width": 56}}, "size.longest_edge is missing"),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    changes: dict[str, Any], images: dict[str, Any], message: str
) -> None:
    assert message in refusal("idefics3", changes, **images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"do_image_splitting": False}, "llama.cpp always shows the tiles of a picture"),
        ({"size": {"longest_edge": 56}}, "a single tile; llama.cpp shows it twice"),
        ({"size": {"longest_edge": 130}}, "not a multiple of tiles of 56; llama.cpp enlarges"),
    ],
)
def test_pictures_that_llama_cpp_divides_otherwise_are_reported(
    images: dict[str, Any], message: str
) -> None:
    (tower,) = towers_of("idefics3", {}, images=images)
    assert len(tower.deviations) == 1
    assert message in tower.deviations[0]


def test_published_settings_rely_on_defaults() -> None:
    """As HuggingFaceTB/SmolVLM-256M-Instruct."""
    vision = {
        "hidden_size": 768,
        "image_size": 512,
        "max_image_size": {"longest_edge": 512},
        "model_type": "idefics3",
        "num_attention_heads": 12,
        "patch_size": 16,
        "size": {"longest_edge": 2048},
        "tie_word_embeddings": False,
        "use_base_siglip": False,
    }
    images = {"max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}}
    changes = {"vision_config": vision, "scale_factor": 4}
    (tower,) = towers_of("idefics3", changes, images=images)
    assert tower.deviations == ()
    assert tower.n_layers == 12
    assert tower.dimensions("ffn hidden") == (3072, 768)
    assert tower.dimensions("text joined") == (32, 12288)
    assert tower.keys["clip.vision.attention.layer_norm_epsilon"].value == 1e-6
    assert tower.keys["clip.vision.preproc_image_size"].value == 2048
