"""gpt-oss in both stored layouts, and settings that its graph in llama.cpp cannot compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from places import SHARED

from dynquant.arch.base import Architecture, Via
from dynquant.arch.families import families
from dynquant.arrays import U8
from dynquant.errors import ArchitectureError
from dynquant.quants import ALL, QuantType, encode
from dynquant.tensors import Computed, TensorSource
from dynquant.transforms import read_weights

N_EXPERTS, N_FFN, HIDDEN = 3, 20, 64
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
PUBLISHED = SHARED / "configs" / "gpt-oss-20b"


def config_of(**changes: Any) -> dict[str, Any]:
    folder = load_reference("gpt-oss").folder
    config = json.loads((folder / "config.json").read_text("utf-8")) | changes
    return {key: value for key, value in config.items() if value is not None}


def describe(config: dict[str, Any]) -> Architecture:
    return families()["GptOssForCausalLM"](config, "config.json")


@dataclass(frozen=True)
class Blocks:
    """Rows of MXFP4."""

    shape: tuple[int, ...]
    blocks: U8
    stored: QuantType = ALL["MXFP4"]

    def read(self, start: int, stop: int, into: U8) -> None:
        into[:] = self.blocks[start:stop].reshape(-1)


def shapes_of(architecture: Architecture) -> dict[str, str]:
    return {row.name: row.shape for row in architecture.rows if "_exps.weight" in row.name}


def via_of(architecture: Architecture, name: str) -> Via:
    """Return the transform of a tensor, given its name without the layer."""
    (row,) = (row for row in architecture.rows if row.name == f"blk.{{}}.{name}")
    return architecture.via_of(row) or unchanged


def unchanged(source: TensorSource) -> TensorSource:
    return source


def test_experts_in_mxfp4_are_stored_by_rows() -> None:
    assert shapes_of(describe(config_of(quantization_config=MXFP4))) == {
        "blk.{}.ffn_gate_exps.weight": "experts expert_ffn_twice hidden",
        "blk.{}.ffn_up_exps.weight": "experts expert_ffn_twice hidden",
        "blk.{}.ffn_down_exps.weight": "experts hidden expert_ffn",
    }


def test_experts_in_bfloat16_are_stored_by_columns() -> None:
    assert shapes_of(describe(config_of())) == {
        "blk.{}.ffn_gate_exps.weight": "experts hidden expert_ffn_twice",
        "blk.{}.ffn_up_exps.weight": "experts hidden expert_ffn_twice",
        "blk.{}.ffn_down_exps.weight": "experts expert_ffn hidden",
    }


@pytest.mark.parametrize("stored", [None, MXFP4], ids=["by columns", "by rows"])
@pytest.mark.parametrize("name", ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"])
def test_weights_of_experts_are_those_of_the_stored_layout(name: str, stored: Any) -> None:
    found = describe(config_of(quantization_config=stored, intermediate_size=N_FFN))
    n_in, n_out = (N_FFN, HIDDEN) if name == "ffn_down_exps" else (HIDDEN, 2 * N_FFN)
    weights = np.arange(N_EXPERTS * n_out * n_in, dtype=np.float32)
    weights = weights.reshape(N_EXPERTS, n_out, n_in)  # [out, in], as in the GGUF
    as_stored = np.ascontiguousarray(weights if stored else weights.transpose(0, 2, 1))
    expected = {
        "ffn_gate_exps": weights[:, 0::2],
        "ffn_up_exps": weights[:, 1::2],
        "ffn_down_exps": weights,
    }[name]
    source = via_of(found, f"{name}.weight")(Computed(as_stored))
    assert source.shape == expected.shape
    rows = read_weights(source, 0, expected.shape[0] * expected.shape[1])
    assert np.array_equal(rows, expected.reshape(rows.shape))


@pytest.mark.parametrize(("role", "first"), [("ffn_gate_exps", 0), ("ffn_up_exps", 1)])
def test_blocks_of_mxfp4_are_moved_and_never_decoded(role: str, first: int) -> None:
    shape = (N_EXPERTS, 2 * N_FFN, HIDDEN)
    x = np.random.default_rng(0).standard_normal((N_EXPERTS * 2 * N_FFN, HIDDEN))
    blocks = encode(x.astype(np.float32), ALL["MXFP4"])
    config = config_of(quantization_config=MXFP4, intermediate_size=N_FFN)
    found = via_of(describe(config), f"{role}.weight")(Blocks(shape, blocks))
    assert found.shape == (N_EXPERTS, N_FFN, HIDDEN)
    assert found.stored == ALL["MXFP4"]
    rows = np.empty((N_EXPERTS * N_FFN, blocks.shape[1]), np.uint8)
    found.read(0, len(rows), rows.reshape(-1))
    alternating = blocks.reshape(N_EXPERTS, N_FFN, 2, -1)
    assert np.array_equal(rows, alternating[:, :, first].reshape(rows.shape))


@pytest.mark.parametrize("stored", [None, MXFP4], ids=["bfloat16", "mxfp4"])
@pytest.mark.parametrize(("role", "first"), [("ffn_gate_exps", 0), ("ffn_up_exps", 1)])
def test_biases_alternate_as_the_rows_do(role: str, first: int, stored: Any) -> None:
    biases = np.arange(N_EXPERTS * 2 * N_FFN, dtype=np.float32).reshape(N_EXPERTS, -1)
    found = describe(config_of(quantization_config=stored, intermediate_size=N_FFN))
    picked = via_of(found, f"{role}.bias")(Computed(biases))
    assert np.array_equal(read_weights(picked, 0, N_EXPERTS), biases[:, first::2])


def test_missing_rope_settings_default_to_the_published_ones() -> None:
    keys = describe(config_of(rope_parameters=None)).keys
    scaling = {k.removeprefix("gpt-oss.rope."): v.value for k, v in keys.items() if ".rope." in k}
    assert scaling == {
        "scaling.type": "yarn",
        "scaling.factor": 32.0,
        "scaling.original_context_length": 4096,
        "freq_base": 150000.0,
    }


def test_old_and_new_spelling_of_the_rope_settings_are_equivalent() -> None:
    new = config_of()
    rope = dict(new["rope_parameters"])
    old = config_of(rope_parameters=None, rope_theta=rope.pop("rope_theta"), rope_scaling=rope)
    assert describe(old).keys == describe(new).keys


REFUSED: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
    ("attention_bias is False", lambda c: c.update(attention_bias=False)),
    ("tie_word_embeddings is True", lambda c: c.update(tie_word_embeddings=True)),
    ("swiglu_limit is 5.0", lambda c: c.update(swiglu_limit=5.0)),
    ("swiglu_alpha is 1.0", lambda c: c.update(swiglu_alpha=1.0)),
    (
        "layer_types does not alternate",
        lambda c: c["layer_types"].insert(0, c["layer_types"].pop()),
    ),
    ("beta_fast is 8", lambda c: c["rope_parameters"].update(beta_fast=8.0)),
)


@pytest.mark.parametrize(("message", "change"), [pytest.param(m, c, id=m) for m, c in REFUSED])
def test_settings_that_the_graph_cannot_compute_are_rejected(
    message: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    config = config_of()
    change(config)
    with pytest.raises(ArchitectureError, match=message):
        describe(config)


def test_tensor_table_equals_the_published_index() -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"needs {PUBLISHED}, which is not shipped")
    config = json.loads((PUBLISHED / "config.json").read_text("utf-8"))
    index = json.loads((PUBLISHED / "model.safetensors.index.json").read_text("utf-8"))
    found = describe(config)
    wanted = {row.stored.replace("{}", str(layer)) for row in found.rows for layer in range(24)}
    assert wanted == {
        name.removesuffix("_blocks").removesuffix("_scales") for name in index["weight_map"]
    }
    assert "truncate is False" in found.deviations[0]
