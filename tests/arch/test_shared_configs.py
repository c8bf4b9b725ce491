"""Published configurations can be planned from headers.

The tensor names are those of the published index, the shapes those of the architecture's table, and
the files are sparse. The tests show that the table has the names of the index.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import shared
from sparse import Header, table, write_sparse
from subsets import slow_except

from dynquant.arch.base import Architecture
from dynquant.arch.load import describe, load_model
from dynquant.errors import CheckpointError
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import load_recipe

pytestmark = pytest.mark.shared

NF4 = "tokenizers/llama-2-13b-ft"
"""Quantized by bitsandbytes, which is not supported."""

WEIGHTS = {  # of the text model, counted from published shapes; the folders that are tested
    "configs/deepseek-ocr2-deepseek2-moe": 2.9e9,
    "configs/gemma-3-27b-medgemma": 27.0e9,
    "configs/gpt-oss-20b": 20.9e9,
    "configs/mixtral-8x22b-wizardlm2": 140.6e9,
    "configs/qwen3-1.7b": 1.72e9,
}


def header(architecture: Architecture, names: list[str]) -> Header:
    """Return dtype and shape of each name in an index; one element if not in the table."""
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
    """Write a sparse checkpoint for a shared configuration and its index."""
    published = shared(name)
    config = json.loads((published / "config.json").read_text("utf-8"))
    index = json.loads((published / "model.safetensors.index.json").read_text("utf-8"))
    write_sparse(folder, config, header(describe(config, ""), list(index["weight_map"])))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("recipe", slow_except(["q8_0"], ["q8_0", "dynamic-4bit"]))
def test_published_configuration_is_planned_from_headers(
    name: str, recipe: str, tmp_path: Path
) -> None:
    write_published(name, tmp_path)
    plan = make_plan(load_model(tmp_path, needs_vocab=False), load_recipe(recipe))
    assert plan.n_weights == pytest.approx(WEIGHTS[name], rel=0.03)
    assert all(not n.startswith(("model.layers", "language_model")) for n in plan.ignored)


def test_bitsandbytes_is_rejected_by_name(tmp_path: Path) -> None:
    write_published(NF4, tmp_path)
    with pytest.raises(CheckpointError, match=r"bitsandbytes.* is not supported; use its base"):
        load_model(tmp_path, needs_vocab=False)
