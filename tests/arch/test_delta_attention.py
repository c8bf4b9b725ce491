"""Kimi-Linear, Kimi-K3 and GLM-5.3-Flash: settings of delta attention, and what is refused.

That files give the answers of the references is in test_families.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import config_of, load_reference, max_difference
from packers import stored_in, write_stored

import dynquant
from dynquant.arch.base import Architecture
from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError, DynquantError
from dynquant.text_settings import text_settings

Tensor = tuple[str, np.ndarray]
KIMI, K3, GLM = "kimi-linear", "kimi-k3", "glm5-next"


def described(family: str, changes: Mapping[str, Any], inside: Mapping[str, Any] = {}) -> Any:
    """Describe a reference with other settings; inside: those of linear_attn_config."""
    config = config_of(family)
    text = text_settings(config) or config
    text.update(changes)
    if inside:
        text["linear_attn_config"] = {**text["linear_attn_config"], **inside}
    return describe(config, "config.json")


REFUSED: tuple[tuple[str, dict[str, Any], dict[str, Any], str], ...] = (
    (KIMI, {}, {"new_gate": 2}, "linear_attn_config has 'new_gate', which is not known"),
    (KIMI, {}, {"num_heads": 4}, "4 heads of delta attention .* as many as num_attention_heads, 3"),
    (KIMI, {}, {"kda_layers": [0, 2], "full_attn_layers": [1]}, "they count from 1"),
    (GLM, {}, {"kda_layers": [1, 4], "full_attn_layers": [2, 3]}, "they count from 0"),
    (KIMI, {}, {"short_conv_kernel_size": 1}, "linear_conv_kernel_dim is 1"),
    (KIMI, {}, {"gate_lower_bound": -5.0}, "linear_lower_bound is -5.0"),
    (KIMI, {}, {"use_full_rank_gate": True}, "use_full_rank_gate is True"),
    (K3, {}, {"use_full_rank_gate": False}, "use_full_rank_gate is False"),
    (KIMI, {"linear_head_dim": 24}, {}, "linear_head_dim is 24 and head_dim of linear_attn_config"),
    (KIMI, {"num_experts_per_tok": 2}, {}, "num_experts_per_token is 3, but num_experts_per_tok"),
    (KIMI, {"layer_types": ["full_attention", *["linear_attention"] * 2]}, {}, "disagree about"),
    (KIMI, {"q_lora_rank": 20}, {}, "q_lora_rank is 20"),
    (KIMI, {"moe_renormalize": False}, {}, "norm_topk_prob is False"),
    (KIMI, {"mla_use_nope": False}, {}, "mla_use_nope is false"),
    (KIMI, {"tie_word_embeddings": True}, {}, "requires a separate output matrix"),
    (KIMI, {"attn_res_block_size": 2}, {}, "is that of a Kimi-K3; set architectures to"),
    (
        KIMI,
        {},
        {"kda_layers": [1, 2, 3], "full_attn_layers": []},
        "all layers have delta attention",
    ),
    (K3, {"hidden_act": "silu"}, {}, "hidden_act is 'silu'"),
    (K3, {"num_experts_per_token": 1}, {}, "moe_renormalize is true"),
    (GLM, {"hc_mult": 2}, {}, "hc_mult is 2; llama.cpp computes 4 streams"),
    (GLM, {"index_topk": 7}, {}, "index_kpool is 3 and index_topk is 7"),
    (GLM, {"index_kpool": 1}, {}, "pools of at least two tokens"),
    (
        GLM,
        {"indexer_types": ["full", "shared", "full", "full"]},
        {},
        "layer 1 is the first with full",
    ),
    (GLM, {"indexer_types": ["full"]}, {}, "indexer_types has 1 entries"),
    (GLM, {"indexer_types": None, "index_topk_pattern": "FFXF"}, {}, "has 'X'; it consists of"),
    (GLM, {"qk_rope_head_dim": 2}, {}, "qk_rope_head_dim is 2"),
    (GLM, {"mlp_layer_types": ["sparse", "dense", *["sparse"] * 2]}, {}, "is not dense and then"),
)


@pytest.mark.parametrize(("family", "changes", "inside", "message"), REFUSED)
def test_settings_that_no_graph_computes_are_refused(
    family: str, changes: dict[str, Any], inside: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        described(family, changes, inside)


def bound(found: Architecture) -> object:
    key = found.keys.get("glm5-next.kda.gate_lower_bound")
    return key and key.value


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ({}, -2.3),
        ({"gate_lower_bound": None}, -5.0),
        ({"gate_lower_bound": None, "safe_gate": True}, -5.0),
        ({"gate_lower_bound": None, "safe_gate": False}, None),
    ],
)
def test_the_bound_of_the_decay_is_that_of_transformers(
    inside: dict[str, Any], expected: float | None
) -> None:
    assert bound(described(GLM, {}, inside)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"index_topk_pattern": "FFSF"}, [True, True, False, True]),
        ({"index_topk_pattern": ["full", "full", "shared", "full"]}, [True, True, False, True]),
        ({"index_topk_freq": 3, "index_skip_topk_offset": 1}, [True, False, False, True]),
        ({}, [True, True, True, True]),
    ],
)
def test_layers_with_an_indexer_are_those_of_transformers(
    settings: dict[str, Any], expected: list[bool]
) -> None:
    types = ["indexed_attention", "linear_attention", "linear_attention", "indexed_attention"]
    more = {"indexer_types": None, "layer_types": types, "linear_attn_config": None}
    sizes = {"linear_num_heads": 3, "linear_head_dim": 12}
    found = described(GLM, {**more, **sizes, **settings})
    assert found.keys["glm5-next.attention.indexer.types"].value == tuple(expected)


def rewritten(
    family: str,
    folder: Path,
    changes: Mapping[str, Tensor | None],
    settings: Mapping[str, Any] = {},
) -> Path:
    """Copy a reference with other tensors and settings; None removes a tensor."""
    shutil.copytree(load_reference(family).folder, folder)
    stored: dict[str, Tensor | None] = {**stored_in(folder), **changes}
    config = config_of(family)
    (text_settings(config) or config).update(settings)
    return write_stored(folder, config, {n: x for n, x in stored.items() if x is not None})


def test_a_nan_under_a_published_name_is_an_error() -> None:
    path = load_reference("kimi-linear").folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | {"num_shared_experts": float("nan")}
    with pytest.raises(ArchitectureError, match="n_shared_experts is nan"):
        describe(config, "config.json")


@pytest.mark.slow
def test_rates_of_kimi_k3_without_padding_give_the_same_file(tmp_path: Path) -> None:
    source = load_reference(K3).folder
    found = stored_in(source).items()
    rates = {n: (kind, x[:3].copy()) for n, (kind, x) in found if n.endswith("A_log")}
    assert rates
    files = (tmp_path / "a.gguf", tmp_path / "b.gguf")
    for folder, out in zip((source, rewritten(K3, tmp_path / "k3", rates)), files, strict=True):
        dynquant.convert(folder, out, recipe="f32", threads=2, set_keys={"general.name": "k3"})
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_missing_factor_of_the_scores_is_reported(tmp_path: Path) -> None:
    missing = "language_model.model.layers.1.mlp_res_proj.weight"
    folder = rewritten(K3, tmp_path / "k3", {missing: None})
    with pytest.raises(DynquantError, match=rf"{missing} is missing"):
        dynquant.load_model(folder)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("action", ["keep", "drop"])
def test_a_prediction_layer_of_glm_changes_no_answer(action: str, tmp_path: Path) -> None:
    import llamacpp

    reference = load_reference(GLM)
    at = "model.language_model.layers."
    of_full = {
        name.replace(f"{at}1.", f"{at}4."): x
        for name, x in stored_in(reference.folder).items()
        if name.startswith(f"{at}1.") and ".hc_" not in name
    }
    shapes = {"enorm": 32, "hnorm": 32, "shared_head.norm": 32, "eh_proj": (32, 64)}
    added = {f"{at}4.{n}.weight": ("F32", np.ones(s, np.float32)) for n, s in shapes.items()}
    settings = {"num_nextn_predict_layers": 1}
    folder = rewritten(GLM, tmp_path / "glm", {**of_full, **added}, settings)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"dynquant: 1\nname: r\ndescription: r\ndefault: F32\nprediction_layers: {action}\n",
        "utf-8",
    )
    out = tmp_path / "out.gguf"
    keys = dynquant.convert(folder, out, recipe=str(recipe), threads=2).plan.keys
    assert keys["glm5-next.block_count"].value == (5 if action == "keep" else 4)
    assert (
        len(keys["glm5-next.attention.head_count_kv"].value) == keys["glm5-next.block_count"].value
    )
    found = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, found) < 1e-3
