"""Janus Pro: refusals, warnings, and what belongs to neither file."""

from __future__ import annotations

from typing import Any

import pytest
from described import FOLDER, refusal, towers_of

from dynquant.arch.load import load_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config.depth": 3}, "depth is 3; llama.cpp computes a projector of 2 matrices"),
        ({"vision_config.projection_dim": 64}, "projection_dim is 64, and the language model has"),
        ({"vision_config.use_qk_norm": True}, "use_qk_norm is true; llama.cpp computes"),
        ({"vision_config.hidden_act": "relu"}, "hidden_act is 'relu'; llama.cpp computes"),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    assert message in refusal("janus", changes)


def test_marks_around_pictures_are_left_to_the_user() -> None:
    (tower,) = towers_of("janus", {"vision_config.hidden_act": "gelu_pytorch_tanh"})
    assert len(tower.deviations) == 1
    assert "write <begin_of_image> before each and <end_of_image> after it" in tower.deviations[0]


def test_the_feed_forward_is_cut_off_not_rounded() -> None:
    """As in transformers: 24 * 1.7 is 40.8."""
    (tower,) = towers_of("janus", {})
    assert tower.dimensions("ffn") == (40,)


def test_the_model_that_draws_is_reported_as_left_out() -> None:
    ignored = load_model(FOLDER / "janus").ignored
    drawing = {name for name, why in ignored.items() if why.startswith("the model that draws")}
    assert {name.split(".")[1] for name in drawing} == {
        "generation_aligner",
        "generation_embeddings",
        "generation_head",
        "vqmodel",
    }
