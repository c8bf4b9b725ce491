"""State space layers: limits of llama.cpp's graphs, and what its converter does differently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import config_of, load_reference
from packers import bf16_values, stored_in

from dynquant.arch.base import Model
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.transforms import read_weights


def stored_values(family: str) -> dict[str, np.ndarray]:
    found = stored_in(load_reference(family).folder)
    return {n: x if kind == "F32" else bf16_values(x) for n, (kind, x) in found.items()}


def values(model: Model, name: str) -> np.ndarray:
    tensor = next(t for t in model.tensors if t.name == name)
    return read_weights(tensor.source, 0, tensor.n_rows).reshape(tensor.shape)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("granite4h", {"mamba_expand": 3}, "mamba_expand is 3; llama.cpp computes this family with 2"),
    ("granite4h", {"mamba_d_head": 8}, "4 heads of 8 channels .* are not 64 channels"),
    ("granite4h", {"mamba_n_groups": 3}, "mamba_n_heads 4 is not a multiple of mamba_n_groups 3"),
    ("granite4h", {"mamba_d_conv": 1}, "mamba_d_conv is 1; llama.cpp needs at least 2"),
    ("granite4h", {"mamba_conv_bias": False}, "llama.cpp computes this family with true"),
    ("granite4h", {"mamba_proj_bias": True}, "llama.cpp computes this family with false"),
    ("granite4h", {"layer_types": ["mamba"] * 3}, "no layer has attention"),
    ("granite4h", {"layer_types": ["mamba"] * 2}, "2 entries for num_hidden_layers 3"),
    ("granite4h", {"shared_intermediate_size": 0}, "is 0, and there are no experts"),
    ("bamba", {"attn_layer_indices": []}, "no layer has attention"),
    ("bamba", {"attn_layer_indices": [0, 1, 2, 3]}, "all layers have attention"),
    ("bamba", {"attn_layer_indices": [1, 4]}, "has 4, but there are 4 layers"),
    ("bamba", {"attn_rotary_emb": 16}, "attn_rotary_emb is 16, but .* rotates 8 weights"),
    ("falcon-h1", {"mamba_d_ssm": 64}, "6 heads of 8 channels .* are not 64 channels"),
    ("falcon-h1", {"mamba_rms_norm": True}, "computes the norm of Mamba after the gate"),
    ("falcon-h1", {"projectors_bias": True}, "llama.cpp computes this family with false"),
    ("falcon-h1", {"attention_bias": True}, "attention_bias is True"),
    ("jamba", {"mamba_expand": 4}, "mamba_expand is 4; llama.cpp computes this family with 2"),
    ("jamba", {"attn_layer_offset": 3}, "attn_layer_offset 3 is not smaller than"),
    ("jamba", {"attn_layer_period": 1, "attn_layer_offset": 0}, "all layers have attention"),
    ("jamba", {"attn_layer_period": 9, "attn_layer_offset": 8}, "all layers have a state space"),
    ("jamba", {"layers_block_type": ["mamba"]}, "has 1 entries for num_hidden_layers 5"),
    ("jamba", {"num_attention_heads": 3}, "not a multiple"),
    ("mamba", {"expand": 4, "intermediate_size": None}, "expand is 4; llama.cpp computes .* 2"),
    ("mamba", {"use_conv_bias": False}, "llama.cpp computes this family with true"),
    ("mamba", {"hidden_act": "gelu"}, "llama.cpp computes this family with 'silu'"),
    ("mamba2", {"num_heads": 8}, "do not make up expand 2 times hidden_size 32"),
    ("mamba2", {"n_groups": 3}, "num_heads 4 is not a multiple of n_groups 3"),
]


@pytest.mark.parametrize("family", ["mamba", "falcon-mamba"])
def test_a_mambas_intermediate_size_has_precedence_over_expand(family: str) -> None:
    # Falcon-Mamba-7B states expand 16, and 8192 channels for a hidden size of 4096.
    published = describe(config_of(family) | {"expand": 16}, "config.json")
    assert published.keys == describe(config_of(family), "config.json").keys


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_what_the_graph_does_not_compute_is_refused(
    family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of(family) | changes, "config.json")


@pytest.mark.parametrize("family", ["granite4h", "bamba", "falcon-h1", "mamba2"])
def test_limits_of_time_steps_are_a_warning(family: str) -> None:
    before = describe(config_of(family), "config.json").deviations
    limits = {"time_step_limit": [0.0, 0.1]}
    after = describe(config_of(family) | limits, "config.json").deviations
    (warning,) = set(after) - set(before)
    assert "time_step_limit limits the time steps of state space layers" in warning


def test_another_epsilon_in_the_norms_of_falcon_mamba_is_a_warning() -> None:
    """As in Falcon-Mamba 7B."""
    config = config_of("falcon-mamba") | {"mixer_rms_eps": 1e-6}
    (warning,) = describe(config, "config.json").deviations
    assert "layer_norm_epsilon is 1e-05" in warning
    assert "mixer_rms_eps is 1e-06, so results differ slightly" in warning


def test_granite_without_positions_has_no_rope_keys() -> None:
    keys = describe(config_of("granite4h"), "config.json").keys
    assert [name for name in keys if ".rope." in name] == ["granitehybrid.rope.scaling.finetuned"]
    assert keys["granitehybrid.rope.scaling.finetuned"].value is False


@pytest.mark.parametrize("family", ["granite4h", "bamba", "nemotron-h", "mamba2", "falcon-h1"])
def test_vectors_of_mamba_2_are_columns(family: str) -> None:
    model = load_model(load_reference(family).folder)
    stored = stored_values(family)
    decay = (
        next(x for n, x in stored.items() if n.endswith("layers.0.mixer.A_log"))
        if any("mixer" in n for n in stored)
        else stored["model.layers.0.mamba.A_log"]
    )
    expected = -np.exp(decay.astype(np.float64)).astype(np.float32)[:, None]
    np.testing.assert_array_equal(values(model, "blk.0.ssm_a"), expected)
    assert values(model, "blk.0.ssm_d").shape == expected.shape


def test_only_the_rotated_half_of_bambas_heads_is_reordered() -> None:
    """llama.cpp's converter reorders whole heads, which its graph does not expect."""
    model = load_model(load_reference("bamba").folder)
    q = stored_values("bamba")["model.layers.1.self_attn.q_proj.weight"].reshape(2, 16, 32)
    pairs = q[:, :8].reshape(2, 2, 4, 32).transpose(0, 2, 1, 3).reshape(2, 8, 32)
    expected = np.concatenate([pairs, q[:, 8:]], axis=1).reshape(32, 32)
    np.testing.assert_array_equal(values(model, "blk.1.attn_q.weight"), expected)


def test_a_tied_embedding_of_falcon_h1_is_two_matrices_with_their_multipliers() -> None:
    """llama.cpp's converter writes one, so that its file has the wrong output matrix."""
    model = load_model(load_reference("falcon-h1-tied").folder)
    embedding = stored_values("falcon-h1-tied")["model.embed_tokens.weight"]
    for name, factor in (("token_embd.weight", 5.6), ("output.weight", 0.6)):
        np.testing.assert_array_equal(values(model, name), embedding * np.float32(factor))


def test_a_tied_embedding_with_one_multiplier_is_one_matrix() -> None:
    config = config_of("falcon-h1-tied") | {"lm_head_multiplier": 5.6}
    assert describe(config, "config.json").tied is not None


def test_channels_of_falcon_h1_are_stated_or_derived_or_the_default() -> None:
    """Null means `mamba_expand` times hidden_size; missing means 1024."""
    config = config_of("falcon-h1")
    config |= {"mamba_d_ssm": None, "mamba_n_heads": 6, "mamba_d_head": "auto", "mamba_expand": 3}
    assert describe(config, "config.json").sizes["ssm_inner"] == 96
    del config["mamba_d_ssm"]
    config |= {"mamba_n_heads": 8, "mamba_n_groups": 2}
    assert describe(config, "config.json").sizes["ssm_inner"] == 1024


def test_a_jamba_with_one_expert_has_none() -> None:
    """As Jamba Reasoning 3B."""
    found = describe(config_of("jamba") | {"num_experts": 1, "num_experts_per_tok": 1}, "c")
    assert found.n_experts == 0
    assert not any("expert" in key for key in found.keys)
    assert not any("_exps" in row.name for row in found.rows)
