"""DeepSeek-OCR's text model against the published config and index, and rejected settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agreement import load_reference
from checkpoints import write_holes
from places import SHARED

from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError

PUBLISHED = SHARED / "configs" / "deepseek-ocr2-deepseek2-moe"


def test_published_tensors_are_used_or_ignored_as_vision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"needs {PUBLISHED}, which is not shipped")
    monkeypatch.setattr("dynquant.arch.load.read_vocab", lambda *_, **__: {})
    config = json.loads((PUBLISHED / "config.json").read_text("utf-8"))
    index = json.loads((PUBLISHED / "model.safetensors.index.json").read_text("utf-8"))
    made = describe(config, "config.json")
    shapes = dict.fromkeys(index["weight_map"], (1,))
    for row in made.rows:
        for layer in range(made.n_layers) if row.layers is None else row.layers:
            for expert in range(made.n_experts):
                name = row.stored.replace("{}", str(layer)).replace("{expert}", str(expert))
                shapes[name] = tuple(made.sizes[size] for size in row.shape.split())
    assert shapes.keys() == index["weight_map"].keys()
    model = load_model(write_holes(tmp_path, config, shapes))
    assert len(model.tensors) == 3 + 6 * 12 + 3 + 7 * 11
    assert len(model.ignored) == sum("sam_model" in n or "qwen2_model" in n for n in shapes) + 3
    assert model.keys["deepseek2-ocr.expert_gating_func"].value == 1


REFUSED: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
    ("rope_theta is 500000", lambda c: c.update(rope_theta=500000.0)),
    ("K and V have 16 rows and Q has 32", lambda c: c.update(num_key_value_heads=2)),
    ("use_mla is True", lambda c: c.update(use_mla=True)),
    ("topk_method is noaux_tc", lambda c: c.update(topk_method="noaux_tc")),
)


@pytest.mark.parametrize(("message", "change"), [pytest.param(m, c, id=m) for m, c in REFUSED])
def test_settings_that_the_graph_cannot_compute_are_rejected(
    message: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    folder = load_reference("deepseek-ocr").folder
    config = json.loads((folder / "config.json").read_text("utf-8"))
    change(config["language_config"])
    with pytest.raises(ArchitectureError, match=message):
        describe(config, "config.json")
