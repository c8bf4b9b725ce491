"""Qwen3.8-Flash-Next: constants of hashes, tables in parts, and the limits of llama.cpp's graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from gguf import GGUFReader, GGUFValueType
from packers import Stored, bf16_values, stored_in, write_stored

import dynquant
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError, CheckpointError
from dynquant.transforms import read_weights

TEXT = "qwen38-flash-next-text"
HASHES = "model.layers.2.ple.ple_embedding."
SHARD = HASHES + "ngram_embedding.shard_{}.weight"
WIDE = ("layer_multipliers", "ngram_heads_offsets", "ngram_heads_vocab_sizes")


def config_of(**changes: Any) -> dict[str, Any]:
    """Return the config.json of the reference with changes; None removes a setting."""
    text = (load_reference(TEXT).folder / "config.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text) | changes
    return {name: value for name, value in config.items() if value is not None}


def written(folder: Path, tensors: Stored, **changes: Any) -> Path:
    """Write the reference with other tensors, and with changes of its config.json."""
    source = load_reference(TEXT).folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return write_stored(folder, config_of(**changes), tensors)


def stored() -> Stored:
    return stored_in(load_reference(TEXT).folder)


def key_of(path: Path, name: str) -> tuple[list[int], GGUFValueType]:
    field = GGUFReader(path).fields[f"qwen4exp.ple.{name}"]
    return field.contents(), field.types[-1]


# ---- constants of hashes -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["from a checkpoint", "from its GGUF"])
def test_the_constants_of_hashes_are_exact(again: bool, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    dynquant.convert(load_reference(TEXT).folder, out, recipe="f32", threads=1)
    if again:
        dynquant.convert(out, tmp_path / "b.gguf", recipe="Q8_0", threads=1)
        out = tmp_path / "b.gguf"
    found, type_ = key_of(out, "layer_multipliers")
    assert type_ == GGUFValueType.UINT64
    assert found == stored()[HASHES + "layer_multipliers"][1].tolist()
    assert all(int(np.float32(value)) != value for value in found)
    for name, key in zip(WIDE[1:], ("head_offsets", "head_vocab_sizes"), strict=True):
        assert key_of(out, key)[0] == stored()[HASHES + name][1].tolist()


@pytest.mark.parametrize("name", WIDE)
def test_constants_that_were_stored_as_floats_are_refused(name: str, tmp_path: Path) -> None:
    tensors = stored()
    values = tensors[HASHES + name][1]
    tensors[HASHES + name] = ("F32", values.astype(np.float32))
    with pytest.raises(CheckpointError, match=rf"{name} is stored as F32, which may have rounded"):
        load_model(written(tmp_path / "m", tensors))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_multipliers", 2**63 // 416),
        ("layer_multipliers", -1),
        ("ngram_heads_offsets", 120),
        ("ngram_heads_vocab_sizes", 0),
    ],
)
def test_constants_beyond_the_table_or_int64_are_refused(
    name: str, value: int, tmp_path: Path
) -> None:
    tensors = stored()
    values = tensors[HASHES + name][1].copy()
    values[1] = value
    tensors[HASHES + name] = ("I64", values)
    with pytest.raises(CheckpointError, match=rf"{name} has {value}; it must be"):
        load_model(written(tmp_path / "m", tensors))


# ---- the table in parts --------------------------------------------------------------------------


def test_parts_of_the_table_are_joined_by_their_numbers() -> None:
    parts = [stored()[SHARD.format(n)][1] for n in range(7)]
    assert {len(part) for part in parts} == {18, 12}
    model = load_model(load_reference(TEXT).folder)
    table = next(t for t in model.tensors if t.name == "per_layer_token_embd.weight")
    assert table.stored_names == tuple(SHARD.format(n) for n in range(7))
    expected = bf16_values(np.concatenate(parts))
    assert np.array_equal(read_weights(table.source, 0, table.n_rows), expected)
    assert np.array_equal(read_weights(table.source, 17, 55), expected[17:55])


def test_more_than_ten_parts_are_not_sorted_as_text(tmp_path: Path) -> None:
    tensors = stored()
    whole = np.concatenate([tensors.pop(SHARD.format(n))[1] for n in range(7)])
    for n in range(12):
        tensors[SHARD.format(n)] = ("BF16", whole[10 * n : 10 * n + 10])
    model = load_model(written(tmp_path / "m", tensors, split_ngram_parts=12))
    table = next(t for t in model.tensors if t.name == "per_layer_token_embd.weight")
    assert np.array_equal(read_weights(table.source, 0, 120), bf16_values(whole))


def test_missing_parts_are_reported_in_one_line(tmp_path: Path) -> None:
    tensors = stored()
    for n in (2, 3, 4):
        del tensors[SHARD.format(n)]
    with pytest.raises(ArchitectureError) as caught:
        load_model(written(tmp_path / "m", tensors))
    assert len(caught.value.messages) == 1
    assert "ngram_embedding.shard_{2-4}.weight is missing" in caught.value.messages[0]


def test_parts_with_too_few_rows_are_reported(tmp_path: Path) -> None:
    tensors = stored()
    tensors[SHARD.format(3)] = ("BF16", tensors[SHARD.format(3)][1][:-1])
    with pytest.raises(ArchitectureError, match=r"shard_\{0-6\}.* have 119 rows together.* 120"):
        load_model(written(tmp_path / "m", tensors))


# ---- forms of published checkpoints --------------------------------------------------------------


def test_the_prediction_layer_is_left_out_with_the_reason(tmp_path: Path) -> None:
    name = "mtp.layers.0.self_attn.q_proj.weight"
    tensors = stored() | {name: ("BF16", np.zeros((8, 8), np.uint16))}
    model = load_model(written(tmp_path / "m", tensors, mtp_num_hidden_layers=1))
    assert model.prediction is None
    assert "prediction layer" in model.ignored[name]


@pytest.mark.slow
@pytest.mark.oracle
def test_a_model_without_embeddings_of_n_grams_loads(tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    tensors = {name: tensor for name, tensor in stored().items() if ".ple." not in name}
    out = tmp_path / "m.gguf"
    folder = written(tmp_path / "m", tensors, ple_layer_ids=[], eos_token_id=None)
    dynquant.convert(folder, out, recipe="f32", threads=1)
    assert llamacpp.loads(out)
    assert not any(".ple." in name for name in GGUFReader(out).fields)


def test_of_several_end_tokens_the_first_ends_n_grams() -> None:
    found = describe(config_of(eos_token_id=[7, 9]), "config.json")
    assert found.keys["qwen4exp.ple.eos_token_id"].value == 7


@pytest.mark.parametrize("kind", ["full_attention", "indexed_attention"])
def test_both_names_of_full_layers_have_the_indexer(kind: str) -> None:
    kinds = ["linear_attention", kind, "linear_attention"]
    found = describe(config_of(layer_types=kinds), "config.json")
    assert found.keys["qwen4exp.attention.compress_ratios"].value == (0, 3, 0)


# ---- what llama.cpp's graph cannot compute -------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_gate_type": "silu"}, "output_gate_type is 'silu'"),
        ({"output_gate_type": None}, "output_gate_type is 'silu' .by default hidden_act."),
        ({"hc_count": 1}, "hc_count is 1; llama.cpp needs at least two"),
        ({"indexer_budget": 7}, "indexer_budget 7 is not a multiple"),
        ({"indexer_compress_ratio": 66, "indexer_budget": 66}, "llama.cpp has at most 64"),
        ({"indexer_head_dim": 4}, "6 rotated weights, but indexer_head_dim is 4"),
        ({"indexer_n_heads": None}, "indexer_n_heads is missing"),
        ({"indexer_kv_heads": 2}, "indexer_kv_heads is 2; llama.cpp computes this family with 1"),
        ({"ple_layer_ids": [1, 3]}, "ple_layer_ids has 2 layers"),
        ({"ple_layer_ids": [2]}, r"ple_layer_ids is \[2\], which is not a layer with linear"),
        ({"ple_layer_ids": [4]}, r"ple_layer_ids is \[4\], which is not a layer"),
        ({"ple_embed_dim": 64}, "ple_embed_dim is 64; .* hidden_size, 32"),
        ({"ngram_size": 9}, "ngram_size is 9; llama.cpp has 2 to 8"),
        ({"heads_per_ngram": 33}, "make 66 heads; llama.cpp has at most 64"),
        ({"heads_per_ngram": 3}, "not a multiple of 6 heads"),
        ({"ngram_vocab_size_base": 2**29}, "rows; llama.cpp has at most 2147483647"),
        ({"eos_token_id": None}, "eos_token_id is missing, at which n-grams end"),
    ],
)
def test_settings_that_the_graph_cannot_compute_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        describe(config_of(**changes), "config.json")
