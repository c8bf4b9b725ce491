"""Hunyuan A13B: settings of each layer, and the rope base that `alpha` stretches."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from agreement import load_reference

from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError


def config() -> dict[str, Any]:
    path = load_reference("hunyuan-moe").folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_topk": [3, 2, 3]}, "moe_topk differs between layers; llama.cpp .* one number"),
        ({"num_shared_expert": [2, 2, 2]}, "num_shared_expert is 2; llama.cpp .* with 1"),
        ({"moe_intermediate_size": 16}, "moe_intermediate_size is 16; .* intermediate_size, 24"),
        ({"norm_topk_prob": False}, "norm_topk_prob is False; llama.cpp .* with True"),
        ({"attention_bias": True}, "attention_bias is True; llama.cpp computes .* with False"),
        ({"use_cla": True}, "use_cla is true; llama.cpp computes this family with false"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as e:
        describe(config() | changes, "config.json")
    assert re.match(f"config.json: {message}", str(e.value))


def test_a_number_may_stand_for_all_layers() -> None:
    stated = {"moe_topk": 3, "num_shared_expert": 1, "moe_intermediate_size": 24}
    found = describe(config() | stated, "config.json")
    assert found.keys == describe(config(), "config.json").keys


def test_published_models_get_the_context_that_alpha_is_made_for() -> None:
    """As in llama.cpp's converter: 256 Ki tokens, and a base of 11158840 for heads of 128."""
    of_heads = {"max_position_embeddings": 32768, "head_dim": 128}
    keys = describe(config() | of_heads, "config.json").keys
    assert keys["hunyuan-moe.context_length"].value == 262144
    assert keys["hunyuan-moe.rope.freq_base"].value == pytest.approx(11158839.9251, rel=1e-7)
