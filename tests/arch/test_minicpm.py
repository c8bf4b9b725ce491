"""Settings of MiniCPM that llama.cpp computes differently from the models' own code."""

from __future__ import annotations

from typing import Any

import pytest
from agreement import config_of

from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError

REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "minicpm",
        {"num_experts": 8},
        "num_experts is 8; llama.cpp computes this family without experts",
    ),
    ("minicpm", {"mlp_bias": True}, "mlp_bias is true"),
    ("minicpm", {"attention_bias": True}, "attention_bias is true"),
    ("minicpm3", {"scale_emb": 10}, "scale_emb is 10.0; llama.cpp computes this family with 12.0"),
    ("minicpm3", {"scale_depth": 1.5}, "scale_depth is 1.5"),
    ("minicpm3", {"dim_model_base": 128}, "dim_model_base is 128.0"),
    ("minicpm3", {"attention_bias": True}, "attention_bias is True"),
)


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_settings_that_llama_cpp_does_not_compute_are_rejected(
    family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of(family) | changes, "config.json")


def test_sparse_attention_is_reported() -> None:
    sparse = {"sparse_config": {"kernel_size": 32, "topk": 64}}
    (warning,) = describe(config_of("minicpm") | sparse, "c").deviations
    assert "llama.cpp's attention has no sparse blocks" in warning


def test_longer_contexts_than_the_original_are_reported() -> None:
    (warning,) = describe(config_of("minicpm") | {"max_position_embeddings": 1024}, "c").deviations
    assert "llama.cpp uses short_factor if its context has at most 512 tokens" in warning
