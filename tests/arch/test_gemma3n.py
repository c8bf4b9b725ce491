"""Gemma 3n: constants of llama.cpp's graph, tensors that it needs without using them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from checkpoints import write_holes

from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.transforms import padded, read_weights

WINDOW, FULL = "sliding_attention", "full_attention"
E2B: dict[str, Any] = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "text_config": {
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_size": 2048,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": [8192] * 30,
        "layer_types": ([WINDOW] * 4 + [FULL]) * 6,
        "num_attention_heads": 8,
        "num_hidden_layers": 30,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 10,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
    },
}
"""The settings of the smaller published model that determine shapes."""


def config_of(**changes: Any) -> dict[str, Any]:
    path = load_reference("gemma3n").folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found | changes


def test_the_published_settings_are_read() -> None:
    found = describe(E2B, "c")
    keys = {name.removeprefix("gemma3n."): key.value for name, key in found.keys.items()}
    assert keys["feed_forward_length"] == 8192
    assert keys["rope.freq_base"] == 1000000
    assert keys["rope.freq_base_swa"] == 10000
    assert keys["attention.sliding_window_pattern"] == ((True,) * 4 + (False,)) * 6
    scale = keys["activation_sparsity_scale"]
    assert isinstance(scale, tuple)
    assert scale[:10] == pytest.approx([1.6448536] * 10)
    assert set(scale[10:]) == {float("-inf")}
    assert found.deviations == ()


def test_layers_without_keys_get_copies_of_those_that_they_use() -> None:
    rows = [r for r in describe(E2B, "c").rows if r.name == "blk.{}.attn_k.weight"]
    stored = {layer: r.stored for r in rows for layer in r.layers or ()}
    name = "model.layers.{}.self_attn.k_proj.weight"
    assert {layer: s for layer, s in stored.items() if layer >= 20} == {
        layer: name.format(19 if layer % 5 == 4 else 18) for layer in range(20, 30)
    }
    assert {stored[layer] for layer in range(20)} == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size_per_layer_input", 128),
        ("altup_num_inputs", 2),
        ("altup_active_idx", 1),
        ("altup_correct_scale", False),
        ("laurel_rank", 32),
        ("final_logit_softcapping", 20.0),
        ("num_kv_shared_layers", 1),
        ("attention_bias", True),
    ],
)
def test_other_constants_than_the_graphs_are_refused(name: str, value: object) -> None:
    with pytest.raises(ArchitectureError, match=f"{name} is {value}; llama.cpp computes"):
        describe(config_of(**{name: value}), "c")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_sparsity_pattern": None}, "activation_sparsity_pattern is not 0.95 for the"),
        ({"activation_sparsity_pattern": [0.95] * 3 + [0.5]}, "is not 0.95 for the first 4"),
        ({"intermediate_size": [72, 72, 72, 64]}, "intermediate_size differs between layers"),
        ({"vocab_size_per_layer_input": 500}, "is more than vocab_size 452"),
        ({"use_bidirectional_attention": True}, "with causal attention"),
        ({"layer_types": [FULL] * 4}, "at least one such layer"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words):
        describe(config_of(**changes), "c")


def test_tokens_beyond_the_table_have_its_first_row() -> None:
    model = load_model(load_reference("gemma3n").folder, needs_vocab=False)
    table = next(t for t in model.tensors if t.name == "per_layer_token_embd.weight")
    assert table.shape == (452, 4 * 256)
    rows = read_weights(table.source, 0, 452)
    assert len(np.unique(rows[:44], axis=0)) == 44
    assert (rows[44:] == rows[0]).all()


def test_rows_are_padded_anywhere_in_a_range() -> None:
    model = load_model(load_reference("gemma3n").folder, needs_vocab=False)
    source = next(t for t in model.tensors if t.name == "token_embd.weight").source
    longer = padded(source, 500)
    whole = read_weights(longer, 0, 500)
    assert np.array_equal(whole[:452], read_weights(source, 0, 452))
    assert np.array_equal(read_weights(longer, 449, 455), whole[449:455])


@pytest.mark.slow
def test_stored_keys_of_layers_that_do_not_use_them_are_left_out(tmp_path: Path) -> None:
    found = describe(E2B, "c")
    shapes: dict[str, tuple[int, ...]] = {}
    for row in found.rows:
        shape = tuple(found.sizes[word] for word in row.shape.split())
        for layer in range(30) if row.layers is None else row.layers:
            for i in range(3):
                name = row.stored.replace("{}", str(layer)).replace("{expert}", str(i))
                shapes[name.replace("model.", "model.language_model.", 1)] = shape
    shapes.pop("lm_head.weight")
    own = {
        f"model.language_model.layers.{layer}.self_attn.{name}_proj.weight": (512, 2048)
        for layer in range(20, 30)
        for name in "kv"
    }
    folder = write_holes(tmp_path, E2B, shapes | own)
    model = load_model(folder, needs_vocab=False)
    assert set(model.ignored) == set(own)
    assert sum(t.name.endswith("attn_k.weight") for t in model.tensors) == 30
