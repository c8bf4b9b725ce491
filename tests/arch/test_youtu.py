"""Youtu-LLM: dense layers in DeepSeek's graph, and the model that also sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from packers import stored_in, write_stored

from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError

YOUTU = load_reference("youtu").folder
CONFIG: dict[str, Any] = json.loads((YOUTU / "config.json").read_text("utf-8"))

REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"num_hidden_layers": 27}, "expects models of 27 layers to have no q_lora_rank"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"rope_interleave": False}, "rope_interleave is False"),
)


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_settings_that_llama_cpp_does_not_compute_are_rejected(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(CONFIG | changes, "config.json")


def test_a_model_without_experts_has_the_keys_of_experts_that_llama_cpp_needs() -> None:
    keys = describe(CONFIG, "config.json").keys
    assert keys["deepseek2.leading_dense_block_count"].value == CONFIG["num_hidden_layers"]
    assert keys["deepseek2.expert_shared_count"].value == 0
    assert keys["deepseek2.expert_feed_forward_length"].value == CONFIG["intermediate_size"]
    assert "deepseek2.expert_count" not in keys


def test_the_vision_model_of_youtu_vl_is_left_out_and_reported(tmp_path: Path) -> None:
    config = CONFIG | {
        "architectures": ["YoutuVLForConditionalGeneration"],
        "model_type": "youtu_vl",
        "vision_config": {"hidden_size": 8},
    }
    more = {
        f"{name}.weight": ("F32", np.zeros((4, 4), np.float32))
        for name in ("siglip2.vision_model.embeddings.patch_embedding", "merger.mlp.0")
    }
    folder = shutil.copytree(YOUTU, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    write_stored(folder, config, stored_in(YOUTU) | more)
    found, alone = load_model(folder), load_model(YOUTU)
    assert {t.name for t in found.tensors} == {t.name for t in alone.tensors}
    assert set(found.ignored) == set(more)
    assert all("the vision model" in reason for reason in found.ignored.values())


@pytest.mark.parametrize(
    ("changes", "matrix"), [({"q_lora_rank": None}, "attn_q.weight"), ({}, "attn_q_b.weight")]
)
def test_queries_have_one_matrix_if_the_rank_is_null_and_1536_if_it_is_missing(
    changes: dict[str, Any], matrix: str
) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "q_lora_rank"}
    found = describe({**config, **changes}, "config.json")
    assert f"blk.{{}}.{matrix}" in {row.name for row in found.rows}
    assert found.sizes["q_rank"] == (0 if changes else 1536)
