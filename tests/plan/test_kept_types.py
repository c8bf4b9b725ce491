"""Integer tables are not weights: every recipe copies them unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoints import config_of, tensors_of, write_checkpoint
from handmade import model, recipe
from subsets import slow_except

from dynquant.arch.base import ModelTensor, Row
from dynquant.arch.gather import gather
from dynquant.arch.load import describe
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.checkpoint.safetensors_header import read_header
from dynquant.conversion.write import convert_plan
from dynquant.errors import CheckpointError
from dynquant.plan.make import make_plan
from dynquant.quants.table import ALL, KEPT

DTYPES = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "F64": np.float64}


def table(dtype: str, *shape: int) -> np.ndarray:
    values = np.random.default_rng(3).integers(-100, 100, shape)
    return values.astype(DTYPES[dtype])


def test_recipes_cannot_use_types_that_are_only_copied() -> None:
    assert list(KEPT) == list(DTYPES)
    assert ALL.keys().isdisjoint(KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("default", slow_except(["Q4_K"], ["F32", "Q8_0", "Q4_K"]))
@pytest.mark.parametrize("shape", [(37, 6), pytest.param((5,), marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_table_is_copied_with_every_recipe(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], default: str
) -> None:
    from safetensors.numpy import save_file

    stored = table(dtype, *shape)
    save_file({"t": stored}, tmp_path / "x.safetensors")
    source = read_header(tmp_path / "x.safetensors")["t"].as_stored()
    name = "blk.0.ffn_gate_tid2eid.weight"
    tensors = (*model().tensors, ModelTensor(name, source))
    plan = make_plan(model(*tensors), recipe(default))
    rule = next(t.rule for t in plan.tensors if t.name == name)
    assert rule == "built-in: " + ("double precision" if dtype == "F64" else "integers")
    convert_plan(plan, tmp_path / "x.gguf", threads=2, chunk_bytes=64)
    found = next(t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors if t.name == name)
    assert found.tensor_type.name == dtype
    assert found.data.dtype == stored.dtype
    assert np.array_equal(found.data, stored)


def test_integers_are_accepted_as_tables_and_refused_as_weights(tmp_path: Path) -> None:
    config = config_of("LlamaForCausalLM", num_hidden_layers=1)
    tensors = tensors_of(config) | {
        "model.layers.0.mlp.tid2eid": table("I32", 24, 2),
        "model.layers.0.mlp.up_proj.weight": table("I8", 40, 16),
    }
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, config, tensors))
    family = describe(config, "config.json")
    row = Row("model.layers.{}.mlp.tid2eid", "blk.{}.ffn_gate_tid2eid.weight", "vocab used")
    family = replace(family, rows=(*family.rows, row), sizes={**family.sizes, "used": 2})
    family = replace(family, sizes={**family.sizes, "vocab": 24})
    with pytest.raises(CheckpointError) as e:
        gather(family, checkpoint)
    (message,) = e.value.messages
    assert "model.layers.0.mlp.up_proj.weight is stored as I8, which is not supported" in message
