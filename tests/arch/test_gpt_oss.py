"""gpt-oss stored in either way, and what its graph in llama.cpp takes for granted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from places import SHARED

from dynquant.arch.base import Architecture
from dynquant.arch.families import families
from dynquant.arrays import U8
from dynquant.errors import ArchitectureError
from dynquant.quants import ALL, QuantType, encode
from dynquant.tensors import Computed
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


def test_mxfp4_is_stored_by_rows_and_bfloat16_by_columns() -> None:
    by_rows = shapes_of(describe(config_of(quantization_config=MXFP4)))
    by_columns = shapes_of(describe(config_of()))
    assert by_rows == {
        "blk.{}.ffn_gate_exps.weight": "experts expert_ffn_twice hidden",
        "blk.{}.ffn_up_exps.weight": "experts expert_ffn_twice hidden",
        "blk.{}.ffn_down_exps.weight": "experts hidden expert_ffn",
    }
    assert {name: sorted(shape.split()) for name, shape in by_columns.items()} == {
        name: sorted(shape.split()) for name, shape in by_rows.items()
    }
    assert by_columns != by_rows


@pytest.mark.parametrize(("role", "first"), [("ffn_gate_exps", 0), ("ffn_up_exps", 1)])
def test_blocks_of_mxfp4_are_moved_and_never_decoded(role: str, first: int) -> None:
    shape = (N_EXPERTS, 2 * N_FFN, HIDDEN)
    x = np.random.default_rng(0).standard_normal((N_EXPERTS * 2 * N_FFN, HIDDEN))
    blocks = encode(x.astype(np.float32), ALL["MXFP4"])
    config = config_of(quantization_config=MXFP4, intermediate_size=N_FFN)
    found = describe(config).via[role](Blocks(shape, blocks))
    assert found.shape == (N_EXPERTS, N_FFN, HIDDEN)
    assert found.stored == ALL["MXFP4"]
    rows = np.empty((N_EXPERTS * N_FFN, blocks.shape[1]), np.uint8)
    found.read(0, len(rows), rows.reshape(-1))
    in_turn = blocks.reshape(N_EXPERTS, N_FFN, 2, -1)
    assert np.array_equal(rows, in_turn[:, :, first].reshape(rows.shape))


@pytest.mark.parametrize("stored", [None, MXFP4], ids=["bfloat16", "mxfp4"])
@pytest.mark.parametrize(("role", "first"), [("ffn_gate_exps", 0), ("ffn_up_exps", 1)])
def test_biases_come_in_turn_as_the_rows_do(role: str, first: int, stored: Any) -> None:
    biases = np.arange(N_EXPERTS * 2 * N_FFN, dtype=np.float32).reshape(N_EXPERTS, -1)
    found = describe(config_of(quantization_config=stored)).via[role](Computed(biases))
    assert np.array_equal(read_weights(found, 0, N_EXPERTS), biases[:, first::2])


def test_a_config_without_rope_has_the_published_one() -> None:
    keys = describe(config_of(rope_parameters=None)).keys
    scaling = {k.removeprefix("gpt-oss.rope."): v.value for k, v in keys.items() if ".rope." in k}
    assert scaling == {
        "scaling.type": "yarn",
        "scaling.factor": 32.0,
        "scaling.original_context_length": 4096,
        "freq_base": 150000.0,
    }


def test_old_and_new_spelling_of_the_rope_mean_the_same() -> None:
    new = config_of()
    rope = dict(new["rope_parameters"])
    old = config_of(rope_parameters=None, rope_theta=rope.pop("rope_theta"), rope_scaling=rope)
    assert describe(old).keys == describe(new).keys


REFUSED: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
    ("attention_bias is False", lambda c: c.update(attention_bias=False)),
    ("tie_word_embeddings is True", lambda c: c.update(tie_word_embeddings=True)),
    ("swiglu_limit is 5.0", lambda c: c.update(swiglu_limit=5.0)),
    ("swiglu_alpha is 1.0", lambda c: c.update(swiglu_alpha=1.0)),
    ("layer_types does not alternate", lambda c: c["layer_types"].pop(0)),
    ("beta_fast is 8", lambda c: c["rope_parameters"].update(beta_fast=8.0)),
)


@pytest.mark.parametrize(("message", "change"), [pytest.param(m, c, id=m) for m, c in REFUSED])
def test_what_the_graph_cannot_compute_is_refused(
    message: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    config = config_of()
    change(config)
    with pytest.raises(ArchitectureError, match=message):
        describe(config)


def test_the_published_index_names_what_the_table_asks_for() -> None:
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
