"""What llama.cpp's graphs of LFM2, Muse Glimmer, Exaone 4 and others cannot compute is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import TESTS, load_reference
from packers import stored_in, write_stored

from dynquant.arch.base import Architecture
from dynquant.arch.load import describe, load_model
from dynquant.errors import CheckpointError, DynquantError


def described(family: str, **changes: Any) -> Architecture:
    """Return the description of a reference with changed settings; null removes one."""
    text = (TESTS / "references" / family / "config.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    settings = config.get("text_config", config)
    settings |= changes
    return describe(config, "config.json")


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("lfm2", {"conv_L_cache": 1}, "needs at least 2"),
    ("lfm2", {"conv_bias": True}, "conv_bias is true; .* with false"),
    ("lfm2", {"full_attn_idxs": []}, "all layers have a convolution"),
    ("lfm2", {"full_attn_idxs": None}, "all layers have attention"),
    ("lfm2", {"head_dim": 16}, "do not add up to hidden_size"),
    ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "mamba"]}, "has 'mamba'"),
    ("lfm2moe", {"norm_topk_prob": False}, "norm_topk_prob is false; .* with true"),
    ("lfm2moe", {"use_expert_bias": False}, "use_expert_bias is false"),
    ("lfm2moe", {"routed_scaling_factor": 2.5}, "routed_scaling_factor is 2.5; .* with 1.0"),
    ("muse-glimmer", {"post_norm_eps": 1e-6}, "post_norm_eps is 1e-06; .* with 1e-08"),
    ("muse-glimmer", {"layer_rope_theta": [0, 50000.0, 0]}, "layer_rope_theta is not 0 for"),
    ("muse-glimmer", {"layer_rope_theta": [50000.0, 5.0, 0]}, "one base for all layers"),
    ("muse-glimmer", {"layer_types": ["full_attention"] * 3}, "layer_rope_theta is not 0 for"),
    (
        "muse-glimmer",
        {"layer_types": ["full_attention"] * 3, "layer_rope_theta": [0, 0, 0]},
        "no 'sliding_attention'",
    ),
    ("muse-glimmer", {"attention_bias": True}, "attention_bias is True"),
    ("muse-glimmer", {"tie_word_embeddings": True}, "requires a separate output matrix"),
    ("smollm3", {"no_rope_layers": [1, 1, 0, 1, 1]}, "every fourth layer without rotary"),
    ("smollm3", {"attention_bias": True}, "attention_bias is True"),
    ("smollm3", {"rope_parameters": {"rope_type": "llama3"}}, "low_freq_factor is missing|llama3"),
    ("bitnet", {"hidden_act": "relu2"}, "'relu2'; llama.cpp's graph of BitNet computes 'silu'"),
    ("bitnet", {"hidden_act": None}, "'relu2'"),
    ("bitnet", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ("bitnet", {"head_dim": 12}, "do not add up to hidden_size"),
    ("arcee", {"mlp_bias": True}, "mlp_bias is True"),
    ("arcee", {"hidden_act": "silu"}, "computes this family with 'relu2'"),
    ("apertus", {"hidden_act": "silu"}, "computes this family with 'xielu'"),
    ("apertus", {"tie_word_embeddings": True}, "requires a separate output matrix"),
    ("seed-oss", {"attention_out_bias": True}, "attention_out_bias is true"),
    ("exaone4", {"sliding_window": 7}, "sliding_window is 7 and num_hidden_layers 2"),
    ("exaone4", {"layer_types": ["sliding_attention"] * 2}, "but sliding_window is null"),
    ("exaone4-64", {"sliding_window": None}, "sliding_window is null and num_hidden_layers 64"),
    ("exaone4-64", {"sliding_window_pattern": "LLX"}, "must be a number or letters"),
    ("hunyuan", {"use_qk_norm": False}, "use_qk_norm is false; .* with true"),
    ("hunyuan", {"head_dim": 2}, "heads have 2 weights"),
)


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_a_setting_that_the_graph_cannot_compute_is_refused(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DynquantError, match=message):
        described(family, **changes)


@pytest.mark.parametrize(
    ("changes", "n_ffn"),
    [
        # LFM2-350M, 1.2B and 2.6B as published: two thirds, rounded up to a multiple of 256.
        ({"block_ff_dim": 6656, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0}, 4608),
        ({"block_ff_dim": 12288, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0}, 8192),
        ({"block_ff_dim": 10752, "block_auto_adjust_ff_dim": False}, 10752),
        ({"block_ff_dim": None, "intermediate_size": 96, "block_ffn_dim_multiplier": None}, 64),
    ],
)
def test_the_width_of_an_lfm2_is_derived_from_its_settings(
    changes: dict[str, Any], n_ffn: int
) -> None:
    assert described("lfm2", **changes).sizes["ffn"] == n_ffn


def test_layers_with_convolutions_have_no_heads_of_keys_and_values() -> None:
    assert described("lfm2").keys["lfm2.attention.head_count_kv"].value == (0, 2, 0, 2)


def test_norms_of_queries_have_the_factor_of_muse_glimmer() -> None:
    model = load_model(TESTS / "references" / "muse-glimmer")
    source = {t.name: t.source for t in model.tensors}
    queries: Any = source["blk.1.attn_q_norm.weight"]
    keys: Any = source["blk.1.attn_k_norm.weight"]
    assert queries.values.tolist() == pytest.approx([2.3] * 12)
    assert keys.values.tolist() == [1.0] * 12


@pytest.mark.parametrize(("pattern", "expected"), [(4, "LLLG"), (3, "LLG"), ("LLG", "LLG")])
def test_the_windows_of_an_exaone_follow_its_pattern(pattern: object, expected: str) -> None:
    found = described("exaone4-64", layer_types=None, sliding_window_pattern=pattern).keys
    written = found.get("exaone4.attention.sliding_window_pattern")
    slides = tuple(expected[layer % len(expected)] == "L" for layer in range(64))
    assert (written.value if written else None) == (None if expected == "LLLG" else slides)


def test_a_window_of_smollm3_is_reported() -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 6}
    (warning,) = described("smollm3", **windowed, layer_types=None).deviations
    assert "sliding_window is 6" in warning
    assert described("smollm3", **windowed).deviations == ()  # its layer_types have none


def test_a_hunyuan_of_another_context_keeps_it() -> None:
    assert described("hunyuan").keys["hunyuan-dense.context_length"].value == 262144
    shorter = described("hunyuan", max_position_embeddings=2048)
    assert shorter.keys["hunyuan-dense.context_length"].value == 2048


def changed_apertus(folder: Path, name: str, bits: int) -> Path:
    """Write the reference of Apertus with another stored number (bfloat16)."""
    source = load_reference("apertus").folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    stored = stored_in(source)
    at = f"model.layers.1.mlp.act_fn.{name}"
    config = json.loads((source / "config.json").read_text("utf-8"))
    dtype, values = stored[at]
    stored[at] = dtype, np.full(values.shape, bits, np.uint16)
    write_stored(folder, config, stored)
    return folder


def test_numbers_of_activations_become_keys(tmp_path: Path) -> None:
    folder = changed_apertus(tmp_path / "changed", "beta", 0x3F00)  # 0.5
    model = load_model(folder)
    value = model.keys["xielu.beta"].value
    assert isinstance(value, tuple)
    assert len(value) == 2
    assert value[1] == 0.5
    assert not any("xielu" in tensor.name for tensor in model.tensors)
    assert model.ignored["model.layers.1.mlp.act_fn.beta"].endswith("the key xielu.beta")


def test_a_number_that_is_not_finite_is_reported_with_its_name(tmp_path: Path) -> None:
    folder = changed_apertus(tmp_path / "changed", "alpha_p", 0x7FC0)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.act_fn\.alpha_p is nan"):
        load_model(folder)
