"""Published configurations plan from headers alone, made for the names in their own indexes.

A file of each dtype and shape is written as a hole; what a shape is, the architecture's own table
says, and that its names are those of the index is what is tested.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import SHARED, shared
from sparse import Header, table, write_sparse

from dynquant.arch.base import Architecture
from dynquant.arch.load import describe, load_model
from dynquant.errors import CheckpointError
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import load_recipe

FOLDERS = (
    "configs/deepseek-ocr2-deepseek2-moe",
    "configs/gemma-3-27b-medgemma",
    "configs/gpt-oss-20b",
    "configs/mixtral-8x22b-wizardlm2",
    "configs/qwen3-1.7b",
)
NF4 = "tokenizers/llama-2-13b-ft"
"""Quantized by bitsandbytes, which is not read."""

WEIGHTS = {  # of the text model, counted from published shapes
    "configs/gemma-3-27b-medgemma": 27.0e9,
    "configs/gpt-oss-20b": 20.9e9,
    "configs/mixtral-8x22b-wizardlm2": 140.6e9,
    "configs/qwen3-1.7b": 1.72e9,
}


def header(architecture: Architecture, names: list[str]) -> Header:
    """Return dtype and shape of each name of an index; what is left out has one number."""
    shapes = table(architecture)
    found: Header = {}
    for name in names:
        known = name.removeprefix("language_model.")
        if known.endswith("_blocks"):
            *rows, n = shapes[known.removesuffix("_blocks")]
            found[name] = "U8", (*rows, n // 32, 16)
        elif known.endswith("_scales"):
            *rows, n = shapes[known.removesuffix("_scales")]
            found[name] = "U8", (*rows, n // 32)
        else:
            dtype = "U8" if "bitsandbytes" in name else "BF16"
            found[name] = dtype, shapes.get(known, (1,))
    return found


def write_published(name: str, folder: Path) -> None:
    """Write the checkpoint of a shared configuration and of its index."""
    published = shared(name)
    config = json.loads((published / "config.json").read_text("utf-8"))
    index = json.loads((published / "model.safetensors.index.json").read_text("utf-8"))
    write_sparse(folder, config, header(describe(config, ""), list(index["weight_map"])))


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("recipe", ["q8_0", "dynamic-4bit"])
def test_a_published_configuration_plans_from_headers(
    name: str, recipe: str, tmp_path: Path
) -> None:
    write_published(name, tmp_path)
    plan = make_plan(load_model(tmp_path, needs_vocab=False), load_recipe(recipe))
    assert plan.n_weights == pytest.approx(WEIGHTS.get(name, 2.9e9), rel=0.03)
    assert all(not n.startswith(("model.layers", "language_model")) for n in plan.ignored)


def test_bitsandbytes_is_refused_by_name(tmp_path: Path) -> None:
    write_published(NF4, tmp_path)
    with pytest.raises(CheckpointError, match=r"bitsandbytes.* is not supported; use its base"):
        load_model(tmp_path, needs_vocab=False)


def test_every_configuration_that_is_there_is_planned() -> None:
    if not SHARED.exists():
        pytest.skip(f"needs {SHARED}")
    found = {str(p.parent.relative_to(SHARED)) for p in SHARED.glob("*/*/*.index.json")}
    assert found == {*FOLDERS, NF4}
