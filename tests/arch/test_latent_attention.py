"""Latent attention split or merged; the oracles are transformers (stored) and llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import F32_TOLERANCE, config_of, load_reference, max_difference
from typer.testing import CliRunner

import dynquant
from dynquant.arch.base import ModelTensor
from dynquant.arch.load import describe
from dynquant.cli import app
from dynquant.errors import ArchitectureError
from dynquant.transforms import Rows, Transposed, read_weights

llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)

pytestmark = pytest.mark.oracle

LATENT = ("deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "kimi-k2")


def tensors_of(name: str, **how: Any) -> dict[str, ModelTensor]:
    model = dynquant.load_model(load_reference(name).folder, **how)
    return {t.name: t for t in model.tensors}


def weights(tensor: ModelTensor) -> np.ndarray:
    return read_weights(tensor.source, 0, tensor.n_rows).reshape(tensor.shape)


@pytest.mark.slow
@pytest.mark.parametrize("family", LATENT)
def test_a_merged_file_predicts_as_transformers_does(family: str, tmp_path: Path) -> None:
    reference = load_reference(family)
    out = tmp_path / "merged.gguf"
    dynquant.convert(reference.folder, out, recipe="f32", threads=1, mla="merged")
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


def test_halves_are_taken_per_head_and_keys_are_transposed() -> None:
    split, merged = (tensors_of("deepseek-v3", mla=mla) for mla in ("split", "merged"))
    whole = weights(merged["blk.1.attn_kv_b.weight"]).reshape(4, 22 + 14, 28)
    assert np.array_equal(weights(split["blk.1.attn_k_b.weight"]), whole[:, :22].transpose(0, 2, 1))
    assert np.array_equal(weights(split["blk.1.attn_v_b.weight"]), whole[:, 22:])
    assert split.keys() - merged.keys() == {
        f"blk.{layer}.attn_{half}_b.weight" for layer in range(3) for half in "kv"
    }


def test_transposed_keys_are_read_one_head_at_a_time() -> None:
    source = tensors_of("deepseek-v3")["blk.1.attn_k_b.weight"].source
    assert isinstance(source, Transposed) and isinstance(source.source, Rows)
    assert source.source.shape == (4, 22, 28)


def test_merged_attention_has_key_heads_and_no_mla_lengths() -> None:
    folder = load_reference("deepseek-v3").folder
    split, merged = (
        {
            key.removeprefix("deepseek2.attention."): value.value
            for key, value in dynquant.load_model(folder, mla=mla).keys.items()
            if key.startswith("deepseek2.attention.")
        }
        for mla in ("split", "merged")
    )
    common = {"head_count": 4, "layer_norm_rms_epsilon": 1e-6, "q_lora_rank": 20}
    common["kv_lora_rank"] = 28
    lengths = {"key_length_mla": 34, "value_length_mla": 14}
    assert split == common | lengths | {"head_count_kv": 1, "key_length": 40, "value_length": 28}
    assert merged == common | {"head_count_kv": 4, "key_length": 34, "value_length": 14}


def test_a_family_without_latent_attention_has_nothing_to_merge() -> None:
    with pytest.raises(ArchitectureError, match="no merged latent attention in qwen2"):
        tensors_of("qwen2", mla="merged")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_both_commands_accept_the_layout(command: str, tmp_path: Path) -> None:
    folder = str(load_reference("deepseek-v3").folder)
    to = [] if command == "plan" else ["-o", str(tmp_path / "x.gguf"), "--dry-run"]
    for mla, has, has_not in (("merged", "kv_b", " attn_k_b"), ("split", "attn_k_b", "kv_b")):
        result = CliRunner().invoke(app, [command, folder, "-r", "f32", "--mla", mla, *to])
        assert result.exit_code == 0
        assert has in result.stdout and has_not not in result.stdout
    assert CliRunner().invoke(app, [command, folder, "-r", "f32", "--mla", "x", *to]).exit_code == 2


REFUSED: tuple[tuple[str, str, Callable[[dict[str, Any]], Any]], ...] = (
    ("deepseek-v3", "scoring_func is 'softmax'", lambda c: c.update(scoring_func="softmax")),
    ("deepseek-v3", "topk_method is 'greedy'", lambda c: c.update(topk_method="greedy")),
    ("deepseek-v3", "rope_interleave is False", lambda c: c.update(rope_interleave=False)),
    ("deepseek-v3", "attention_bias is True", lambda c: c.update(attention_bias=True)),
    ("deepseek-v3", "moe_layer_freq is 2", lambda c: c.update(moe_layer_freq=2)),
    ("deepseek-v3", "n_group 2 .* do not fit 9 experts", lambda c: c.update(n_group=2)),
    ("deepseek-v3", "n_group 9 .* do not fit 9 experts", lambda c: c.update(n_group=9)),
    (
        "deepseek-v3",
        "of 27 layers to have no q_lora_rank",
        lambda c: c.update(num_hidden_layers=27),
    ),
    ("deepseek-v3", "supports only 1", lambda c: c["rope_scaling"].update(mscale=0.5)),
    ("deepseek-v3", "rope_type 'linear'", lambda c: c["rope_scaling"].update(type="linear")),
    ("deepseek-v3", "kv_lora_rank is missing", lambda c: c.update(kv_lora_rank=None)),
    ("deepseek-v2", "norm_topk_prob is true", lambda c: c.update(norm_topk_prob=True)),
    ("deepseek-v2", "scoring_func is 'sigmoid'", lambda c: c.update(scoring_func="sigmoid")),
    ("deepseek", "norm_topk_prob is True", lambda c: c.update(norm_topk_prob=True)),
    ("deepseek", "scoring_func is sigmoid", lambda c: c.update(scoring_func="sigmoid")),
    ("deepseek", "attention_bias is True", lambda c: c.update(attention_bias=True)),
    ("deepseek", "not to hidden_size 32", lambda c: c.update(head_dim=16)),
    ("deepseek", "n_routed_experts is missing", lambda c: c.update(n_routed_experts=None)),
)


@pytest.mark.parametrize(
    ("family", "message", "change"),
    [pytest.param(f, m, c, id=f"{f}, {m}") for f, m, c in REFUSED],
)
def test_settings_that_the_graph_cannot_compute_are_rejected(
    family: str, message: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    config = config_of(family)
    change(config)
    with pytest.raises(ArchitectureError, match=message):
        describe(config, "config.json")


def test_deviations_of_the_graph_are_warnings_of_the_plan(tmp_path: Path) -> None:
    folder = shutil.copytree(load_reference("deepseek-v2").folder, tmp_path / "m")
    config = config_of("deepseek-v2")
    config["topk_group"] = 2
    config["rope_scaling"]["beta_fast"] = 1.0
    (folder / "config.json").write_text(json.dumps(config))
    model = dynquant.load_model(folder)
    groups, beta = model.deviations[1], model.deviations[0]
    assert "ranks groups of experts by their best expert" in groups
    assert "beta_fast is 1.0, but llama.cpp uses 32.0" in beta
    assert model.keys["deepseek2.rope.scaling.yarn_beta_fast"].value == 1.0
    warnings = dynquant.make_plan(model, dynquant.load_recipe("f32")).warnings
    assert warnings == model.deviations
    assert dynquant.load_model(load_reference("deepseek-v2").folder).deviations == ()


def test_scores_without_a_magnitude_need_no_multiplier(tmp_path: Path) -> None:
    config = config_of("deepseek-v3")
    del config["rope_scaling"]["mscale"], config["rope_scaling"]["mscale_all_dim"]
    config["rope_scaling"]["attention_factor"] = 1.0
    keys = describe(config, "config.json").keys
    assert "deepseek2.rope.scaling.yarn_log_multiplier" not in keys
    factor = keys["deepseek2.rope.scaling.attn_factor"].value
    assert factor == pytest.approx(1 / (1 + 0.1 * np.log(40)))
