"""Gemma 4: heads of two sizes, shared keys and values, embeddings for each layer, experts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from handmade import recipe
from safetensors.numpy import save_file

from dynquant.arch.load import describe, load_model
from dynquant.arch.positions.rope import proportional_factors, read_rope
from dynquant.errors import ArchitectureError
from dynquant.importance.audit import missing
from dynquant.plan.make import make_plan

WINDOW, FULL = "sliding_attention", "full_attention"


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a reference, with changes in the settings of its text model."""
    config: dict[str, Any] = json.loads(
        (load_reference(family).folder / "config.json").read_text("utf-8")
    )
    config.get("text_config", config).update(changes)
    return config


def keys_of(family: str, **changes: Any) -> dict[str, Any]:
    found = describe(config_of(family, **changes), "c").keys
    return {name.removeprefix("gemma4."): key.value for name, key in found.items()}


def refusal(family: str, **changes: Any) -> str:
    with pytest.raises(ArchitectureError) as e:
        describe(config_of(family, **changes), "c")
    return "\n".join(e.value.messages)


def test_without_a_soft_cap_the_key_is_zero_because_llama_cpps_default_is_30() -> None:
    assert keys_of("gemma4unified")["final_logit_softcapping"] == 0
    assert keys_of("gemma4")["final_logit_softcapping"] == 0.7


def test_heads_of_single_layers_and_of_all_full_layers_are_read() -> None:
    both = {"per_layer_config": None, "global_head_dim": 20, "num_global_key_value_heads": 1}
    stated = {"2": {"head_dim": 20, "num_key_value_heads": 1}}
    as_published = keys_of("gemma4moe", **both)
    assert keys_of("gemma4moe", per_layer_config=stated) == as_published
    assert as_published["attention.head_count_kv"] == (2, 2, 1)
    # As in transformers, the global heads of K and V are those of models whose values are the keys.
    apart = keys_of("gemma4moe", **both, attention_k_eq_v=False)
    assert apart["attention.head_count_kv"] == 2
    assert apart["attention.key_length"] == 20


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"2": {"head_dim": 20}, "4": {"head_dim": 24}}, "gives layers without a window different"),
        ({"0": {"head_dim": 20}}, "gives layers with a window different heads"),
        ({"9": {"head_dim": 20}}, "has layer 9, but there are 5 layers"),
        ({"2": {"intermediate_size": 9}}, "states intermediate_size; llama.cpp supports only"),
        ({"2": {"head_dim": 21}, "4": {"head_dim": 21}}, "heads of 21 weights"),
        ({"0": {"num_key_value_heads": 3}}, "not a multiple of 3, the heads of K and V"),
        ({"x": {}}, "per_layer_config.x"),
        ([1], "per_layer_config is [1], but should be a valid dictionary"),
    ],
)
def test_heads_that_llama_cpp_cannot_compute_are_refused(layers: Any, words: str) -> None:
    assert words in refusal("gemma4", per_layer_config=layers)


@pytest.mark.parametrize(
    ("types", "n_shared", "words"),
    [
        ([WINDOW, WINDOW, FULL, WINDOW, FULL], 1, "layers without a window the keys"),
        ([WINDOW, FULL, FULL, WINDOW, FULL], 2, "layers with a window the keys"),
        ([WINDOW, WINDOW, FULL, WINDOW, FULL], 4, "at least two with keys"),
        ([WINDOW, WINDOW, FULL, WINDOW, FULL], 9, "at least two with keys"),
    ],
)
def test_keys_that_llama_cpp_would_take_from_another_layer_are_refused(
    types: list[str], n_shared: int, words: str
) -> None:
    found = refusal("gemma4", layer_types=types, num_kv_shared_layers=n_shared)
    assert words in found
    assert f"num_kv_shared_layers is {n_shared}" in found


def test_full_layers_may_share_keys_without_a_window_before_them() -> None:
    types = [WINDOW, FULL, FULL, FULL, FULL]
    layers = {str(i): {"head_dim": 20} for i in (1, 2, 3, 4)}
    changes = {"layer_types": types, "per_layer_config": layers}
    assert keys_of("gemma4", **changes)["attention.shared_kv_layers"] == 2


def test_null_states_that_there_are_no_embeddings_for_each_layer() -> None:
    rows = describe(config_of("gemma4", hidden_size_per_layer_input=None), "c").rows
    assert not [row.name for row in rows if "per_layer" in row.name]


def test_the_last_layer_has_no_window_as_in_transformers() -> None:
    types = [WINDOW, WINDOW, FULL, WINDOW, WINDOW]
    found = keys_of("gemma4", layer_types=types)["attention.sliding_window_pattern"]
    assert found == (True, True, False, True, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_bidirectional_attention": "all"}, "'all'; llama.cpp computes the text"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"vocab_size_per_layer_input": 100}, "vocab_size_per_layer_input is 100, but"),
        ({"rope_parameters": {FULL: {"rope_theta": 1.0}}}, "no settings for sliding_attention"),
        ({"hidden_activation": "gelu"}, "hidden_act is 'gelu'"),
        ({"enable_moe_block": True}, "num_experts is missing"),
        ({"layer_types": [FULL] * 5}, "no layer with a window"),
    ],
)
def test_settings_that_the_graph_does_not_have_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    assert words in refusal("gemma4", **changes)


def test_attention_of_images_alone_may_look_ahead() -> None:
    assert keys_of("gemma4", use_bidirectional_attention="vision") == keys_of("gemma4")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope_type": "proportional", "partial_rotary_factor": 0.35}, [1] * 3 + [1e30] * 7),
        ({"rope_type": "proportional"}, [1] * 10),
        ({"rope_type": "proportional", "factor": 8.0}, [8] * 10),
        ({"rope_type": "default"}, [1] * 10),
    ],
)
def test_unrotated_pairs_have_a_divisor_that_stops_them(
    settings: dict[str, Any], expected: list[float]
) -> None:
    config = {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e6, **settings}}
    rope = read_rope(config, "c", known=("proportional",), partial=1.0)
    assert np.array_equal(proportional_factors(rope, 20), np.array(expected, np.float32))


def test_stored_keys_and_values_of_layers_that_share_them_are_left_out(tmp_path: Path) -> None:
    source = load_reference("gemma4").folder
    layer = "model.language_model.layers."
    names = ("k_norm", "k_proj", "v_proj")
    folder = shutil.copytree(source, tmp_path / "model")
    more_tensors = {f"{layer}3.self_attn.{n}.weight": np.ones(3, np.float32) for n in names}
    save_file(more_tensors, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(more_tensors, "model-00002-of-00002.safetensors")
    content = (folder / "model-00001-of-00002.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    files |= {n: "model-00001-of-00002.safetensors" for n in header if n != "__metadata__"}
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    less, more = load_model(source), load_model(folder)
    assert [t.name for t in more.tensors] == [t.name for t in less.tensors]
    reasons = {n: r for n, r in more.ignored.items() if n not in less.ignored}
    assert sorted(reasons) == sorted(more_tensors)
    assert {r.partition(" with ")[0] for r in reasons.values()} == {"llama.cpp computes the layer"}
    plan = make_plan(more, recipe("F16"))
    assert not [w for w in plan.warnings if "self_attn" in w]


def test_a_missing_key_matrix_of_a_layer_that_shares_is_not_missed() -> None:
    found = describe(config_of("gemma4"), "c")
    layers = [sorted(r.layers or ()) for r in found.rows if r.name == "blk.{}.attn_k.weight"]
    assert layers == [[0, 1], [2]]


def test_full_layers_without_values_have_no_value_matrix() -> None:
    found = describe(config_of("gemma4moe"), "c")
    layers = [sorted(r.layers or ()) for r in found.rows if r.name == "blk.{}.attn_v.weight"]
    assert layers == [[0, 1]]


def test_a_table_of_embeddings_needs_no_importance() -> None:
    wanted = ("per_layer_token_embd.weight", "blk.0.inp_gate.weight")
    assert missing(wanted, {}) == ["blk.0.inp_gate.weight"]
