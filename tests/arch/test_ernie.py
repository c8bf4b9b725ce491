"""ERNIE 4.5: what llama.cpp's graph does not compute is left out or refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from agreement import load_reference
from packers import stored_in, write_stored

from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError


def config() -> dict[str, Any]:
    path = load_reference("ernie4.5moe").folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bias": True}, "use_bias is True; llama.cpp computes this family with False"),
        ({"moe_layer_interval": 2}, "moe_layer_interval is 2; llama.cpp computes .* with 1"),
        ({"moe_layer_end_index": 1}, "moe_layer_end_index is 1; .* up to the last layer, 2"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as e:
        describe(config() | changes, "config.json")
    assert re.match(f"config.json: {message}", str(e.value))


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    source = load_reference("ernie4.5moe").folder
    stored = stored_in(source)
    norm = stored["model.norm.weight"]
    more = {
        f"model.mtp_{name}.weight": norm
        for name in ("block.0.input_layernorm", "emb_norm.0", "hidden_norm.0", "linear_proj.0")
    }
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors*"))
    model = load_model(write_stored(tmp_path / "m", config(), stored | more))
    assert set(model.ignored) == set(more)


def test_a_checkpoint_may_have_no_shared_experts_and_no_bias_of_scores(tmp_path: Path) -> None:
    source = load_reference("ernie4.5moe").folder
    stored = {n: t for n, t in stored_in(source).items() if not re.search("shared|statics", n)}
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors*"))
    changed = config() | {"moe_num_shared_experts": 0}
    model = load_model(write_stored(tmp_path / "m", changed, stored))
    assert "ernie4_5-moe.expert_shared_feed_forward_length" not in model.keys
    assert not [t.name for t in model.tensors if "shexp" in t.name or "exp_probs" in t.name]
