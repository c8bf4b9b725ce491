"""DeepSeek-V4: packed checkpoints, tables of experts, other names, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from packers import FORMATS, Stored, stored_in, write_stored

from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError, CheckpointError
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import parse_recipe
from dynquant.transforms import read_weights

TABLE = "layers.0.ffn.gate.tid2eid"
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [32, 32],
    "activation_scheme": "dynamic",
}


def config_of() -> dict[str, Any]:
    text = (load_reference("deepseek-v4").folder / "config.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def stored_tensors() -> Stored:
    return stored_in(load_reference("deepseek-v4").folder)


def written(folder: Path, tensors: Stored, **changes: Any) -> Path:
    """Write the reference with other tensors, and with changes of its config.json."""
    source = load_reference("deepseek-v4").folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return write_stored(folder, config_of() | changes, tensors)


def by_name(model: Model) -> dict[str, ModelTensor]:
    return {t.name: t for t in model.tensors}


def values(tensor: ModelTensor) -> np.ndarray:
    return read_weights(tensor.source, 0, tensor.n_rows).reshape(tensor.shape)


def table_of(model: Model) -> np.ndarray:
    source = by_name(model)["blk.0.ffn_gate_tid2eid.weight"].source
    assert source.stored.name == "I32"
    found = np.empty(4 * int(np.prod(source.shape)), np.uint8)
    source.read(0, source.shape[0], found)
    return found.view("<i4").reshape(source.shape)


@pytest.mark.parametrize("kind", [("I64", np.int64), ("I32", np.int32)])
def test_a_table_of_experts_becomes_32_bits(kind: tuple[str, type], tmp_path: Path) -> None:
    stored = stored_tensors()
    table = stored[TABLE][1]
    stored[TABLE] = (kind[0], table.astype(kind[1]))
    found = load_model(written(tmp_path / "m", stored))
    np.testing.assert_array_equal(table_of(found), table)


def test_a_table_with_larger_numbers_is_reported(tmp_path: Path) -> None:
    stored = stored_tensors()
    table = stored[TABLE][1].copy()
    table[5, 1] = 2**40
    stored[TABLE] = ("I64", table)
    with pytest.raises(CheckpointError, match="numbers beyond 32 bits"):
        table_of(load_model(written(tmp_path / "m", stored)))


def packed_tensors() -> tuple[Stored, Stored]:
    """Return a checkpoint as published, MXFP4 experts and FP8 attention, and its values.

    Experts have 32 weights in a row, one block.
    """
    rng, fp8, mxfp4 = np.random.default_rng(0), FORMATS["fp8 32x32 F8_E8M0"], FORMATS["mxfp4"]
    packed, floats = stored_tensors(), stored_tensors()
    for name in list(packed):
        part = re.search(r"\.(experts\.\d+|shared_experts)\.(w[123])\.", name)
        is_fp8 = re.search(r"\.(wq_a|wq_b|wkv|wo_a|wo_b)\.weight$", name)
        if part:
            shape = (32, 32)
        elif is_fp8 and "compressor" not in name:
            shape = packed[name][1].shape
        else:
            continue
        is_expert = part is not None and part[1] != "shared_experts"
        parts, value = (mxfp4 if is_expert else fp8).pack(name, shape, rng)
        del packed[name]
        for stored_name, (dtype, numbers) in parts.items():
            own = re.sub(r"weight(_scale(_inv)?)$", "scale", stored_name).replace("_packed", "")
            packed[own] = ("I8" if is_expert and own == name else dtype, numbers)
        floats[name] = ("F32", value.astype(np.float32))
    return packed, floats


@pytest.mark.slow
def test_a_published_checkpoint_gives_the_weights_of_its_floats(tmp_path: Path) -> None:
    packed, floats = packed_tensors()
    sizes = {"moe_intermediate_size": 32}
    settings = sizes | {"quantization_config": QUANTIZATION}
    ours = load_model(written(tmp_path / "packed", packed, **settings))
    expected = by_name(load_model(written(tmp_path / "floats", floats, **sizes)))
    assert by_name(ours).keys() == expected.keys()
    for name, tensor in by_name(ours).items():
        if "tid2eid" not in name:
            np.testing.assert_array_equal(values(tensor), values(expected[name]), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dynamic-4bit", "dynamic-5bit", "dynamic-6bit"])
def test_experts_in_mxfp4_are_copied(recipe: str, tmp_path: Path) -> None:
    packed, _ = packed_tensors()
    settings = {"moe_intermediate_size": 32, "quantization_config": QUANTIZATION}
    model = load_model(written(tmp_path / "m", packed, **settings))
    text = (Path(__file__).parents[2] / "recipes" / f"{recipe}.yaml").read_text("utf-8")
    plan = make_plan(model, parse_recipe(text, f"{recipe}.yaml", recipe))
    types = {t.name: t.type.name for t in plan.tensors}
    found = {name: kind for name, kind in types.items() if "_exps." in name}
    assert len(found) == 9
    assert {*found.values()} == {"MXFP4"}
    delicate = {
        kind for name, kind in types.items() if "hc_" in name or name.endswith("ape.weight")
    }
    assert delicate == {"F32"}
    assert types["blk.0.ffn_gate_tid2eid.weight"] == "I32"


@pytest.mark.slow
def test_names_as_transformers_saves_them_are_read(tmp_path: Path) -> None:
    names = {r"^embed\.": "embed_tokens.", r"^hc_head_": "hc_head.hc_", r"\.attn\.kv_": ".attn."}
    stored = stored_tensors()
    plain = by_name(load_model(written(tmp_path / "a" / "m", stored)))
    moved: Stored = {}
    for name, tensor in stored.items():
        for before, after in names.items():
            name = re.sub(before, after, name)
        moved[name if name.startswith("head") else f"model.{name}"] = tensor
    found = by_name(load_model(written(tmp_path / "b" / "m", moved)))
    assert found.keys() == plain.keys()


def test_what_llama_cpp_does_not_read_is_left_out_and_reported(tmp_path: Path) -> None:
    stored = stored_tensors()
    bias = stored["layers.1.ffn.gate.bias"]
    more: Stored = {
        "mtp.0.enorm.weight": stored["norm.weight"],
        "vision.patch_embed.proj.weight": stored["norm.weight"],
        "image_newline": stored["norm.weight"],
        "layers.0.ffn.gate.bias": bias,
        "layers.1.ffn.gate.bias_vl": bias,
    }
    model = load_model(written(tmp_path / "m", stored | more))
    assert model.ignored.keys() == more.keys() - {"layers.1.ffn.gate.bias_vl"}
    assert "separate file" in model.ignored["mtp.0.enorm.weight"]
    assert "blk.1.exp_probs_b_vl.bias" in by_name(model)


@pytest.mark.slow
def test_a_model_without_a_chat_template_is_reported(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", stored_tensors())
    assert load_model(folder).deviations == ()
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    del settings["chat_template"]
    path.write_text(json.dumps(settings))
    (warning,) = load_model(folder).deviations
    assert "has no chat template" in warning
    assert "chat_template.jinja" in warning


def test_settings_as_transformers_saves_them_give_the_same_keys() -> None:
    yarn = {k: v for k, v in config_of()["rope_scaling"].items() if k != "type"}
    partial = {"partial_rotary_factor": 0.3}
    saved = {
        "compress_ratios": None,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "num_hash_layers": None,
        "rope_scaling": None,
        "rope_parameters": {
            "main": {"rope_type": "default", "rope_theta": 10000.0, **partial},
            "compress": {
                **yarn,
                "rope_type": "yarn",
                "rope_theta": 160000.0,
                "attention_factor": 1.0,
                **partial,
            },
        },
        **partial,
    }
    found = describe(config_of() | saved, "config.json")
    assert found.deviations == ()
    assert found.keys == describe(config_of(), "config.json").keys


_RATES = {"compressed_sparse_attention": 8}
REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"hc_mult": 3}, "llama.cpp computes 4"),
    ({"o_groups": 4}, "is not a multiple of o_groups 4"),
    ({"compress_ratios": [0, 4]}, "for each of 3 layers"),
    ({"compress_ratios": [0, 8, 128]}, "one of 0, 4 and 128"),
    ({"compress_rates": _RATES}, "compresses 8 tokens into one; llama.cpp computes 4"),
    ({"mlp_layer_types": ["moe", "hash_moe", "moe"]}, "hash_moe and then moe"),
    ({"norm_topk_prob": False}, "llama.cpp computes this family with True"),
    ({"scoring_func": "sigmoid"}, "computes this family with 'sqrtsoftplus'"),
    ({"index_head_dim": 96}, "multiples of 64"),
    ({"tie_word_embeddings": True}, "requires a separate output matrix"),
    ({"partial_rotary_factor": 0.5}, "rotate 12 and 20 weights"),
    ({"qk_rope_head_dim": 13}, "need an even number"),
)


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of() | changes, "config.json")
