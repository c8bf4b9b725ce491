"""Prediction layers of Ling 2.0, normalized output matrices, and settings that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import F32_TOLERANCE, config_of, load_reference, max_difference
from predicting import with_copied_layer

import dynquant
from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError
from dynquant.recipe.loader import parse_recipe
from dynquant.tensors import Computed
from dynquant.transforms import UnitColumns, read_weights


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("keep", ["drop", "keep"])
def test_results_of_ling_2_are_the_same_with_and_without_its_prediction_layer(
    tmp_path: Path, keep: str
) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    norms = ("enorm", "hnorm", "final_layernorm")
    more = {f"{name}.weight": "model.norm.weight" for name in norms}
    folder = with_copied_layer("bailingmoe2", tmp_path / "predicts", "model.layers.1.", more)
    out = tmp_path / f"{keep}.gguf"
    recipe = parse_recipe(f"default: F32\nprediction_layers: {keep}", "r.yaml", "r")
    plan = dynquant.convert(folder, out, recipe=recipe, threads=1).plan
    for name in ("nextn.eh_proj", "layer_output_norm", "exp_probs_b"):
        found = any(n.startswith(f"blk.2.{name}.") for n in plan.sources)
        assert found == (keep == "keep")
    reference = load_reference("bailingmoe2")
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


def test_columns_are_divided_by_their_norms() -> None:
    x = np.random.default_rng(5).standard_normal((37, 6)).astype(np.float32)
    found = read_weights(UnitColumns(Computed(x), 1e-7), 3, 31)
    expected = x / (np.linalg.norm(x.astype(np.float64), axis=0) + 1e-7)
    np.testing.assert_allclose(found, expected[3:31], rtol=1e-6)


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("bailingmoe", {"first_k_dense_replace": 1}, "first_k_dense_replace is 1"),
    ("bailingmoe", {"use_bias": True}, "use_bias is True"),
    ("bailingmoe2", {"use_qk_norm": False}, "use_qk_norm is False"),
    ("bailingmoe2", {"head_dim": 12}, "do not add up to hidden_size"),
    ("bailingmoe2", {"n_group": 4}, "do not fit 6 experts"),
    ("bailingmoe3", {"kda_safe_gate": False}, "kda_safe_gate is False"),
    ("bailingmoe3", {"kda_lower_bound": 0.0}, "llama.cpp needs one below zero"),
    ("bailingmoe3", {"layer_group_size": 1}, "some layers of each kind"),
    ("bailingmoe3", {"mlp_layer_types": ["dense"] * 4}, "mlp_layer_types has 4 dense layers"),
    ("bailingmoe3", {"mlp_layer_types": ["sparse", "dense"] * 2}, "not dense and then sparse"),
    ("bailingmoe3", {"n_group": 4}, "do not fit 6 experts"),
    ("bailingmoe3", {"no_kda_lora": False}, "no_kda_lora is false"),
    ("bailingmoe3", {"gated_attention_proj_granularity_type": "element"}, "with 'head_wise'"),
    ("sarvam-moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
    ("bailingmoe2", {"score_function": "softmax"}, "llama.cpp computes this family with .sigmoid"),
)


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_settings_that_llama_cpp_does_not_compute_are_rejected(
    family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of(family) | changes, "config.json")


def test_no_groups_are_written_if_all_are_used() -> None:
    found = describe(config_of("bailingmoe2") | {"topk_group": 3}, "config.json")
    assert "bailingmoe2.expert_group_count" not in found.keys


def test_the_weight_of_a_single_expert_is_not_normalized() -> None:
    for family in ("bailingmoe", "bailingmoe2"):
        found = describe(config_of(family) | {"num_experts_per_tok": 1}, "config.json")
        assert found.keys[f"{found.name}.expert_weights_norm"].value is False


def test_ling_3_has_the_same_keys_in_the_form_that_transformers_writes() -> None:
    published = config_of("bailingmoe3")
    renamed = {
        "max_position_embeddings": "model_max_length",
        "n_group": "num_expert_group",
        "norm_topk_prob": "moe_renormalize",
        "num_experts_per_tok": "num_experts_per_token",
    }
    written = {renamed.get(name, name): value for name, value in published.items()}
    written |= {"head_dim": 6, "linear_head_dim": 16, "linear_conv_kernel_dim": 4}
    written |= {"architectures": ["BailingHybridForCausalLM"], "linear_num_heads": 2}
    found, other = describe(published, "c"), describe(written, "c")
    assert found.keys == other.keys
    assert found.deviations == other.deviations == ()
    assert found.sizes == other.sizes


def test_limits_of_ling_3s_activations_are_keys_and_reported() -> None:
    limits = {"expert_swiglu_limit_list": [None, 0.0, 4.0, 7.0]}
    found = describe(config_of("bailingmoe3") | limits, "c")
    assert found.keys["bailingmoe3.swiglu_clamp_exp"].value == (0.0, 0.0, 4.0, 7.0)
    assert "bailingmoe3.swiglu_clamp_shexp" not in found.keys
    (warning,) = found.deviations
    assert "expert_swiglu_limit_list limits activations of experts" in warning


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("keep", ["drop", "keep"])
def test_results_of_ling_3_are_the_same_with_and_without_its_prediction_layer(
    tmp_path: Path, keep: str
) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    norms = ("enorm", "hnorm", "final_layernorm")
    more = {f"{name}.weight": "model.norm.weight" for name in norms}
    folder = with_copied_layer("bailingmoe3", tmp_path / "predicts", "model.layers.3.", more)
    out = tmp_path / f"{keep}.gguf"
    recipe = parse_recipe(f"default: F32\nprediction_layers: {keep}", "r.yaml", "r")
    plan = dynquant.convert(folder, out, recipe=recipe, threads=1).plan
    assert ("blk.4.nextn.eh_proj.weight" in plan.sources) == (keep == "keep")
    heads = plan.keys["bailingmoe3.attention.head_count_kv"].value
    assert heads == ((0, 1, 0, 1, 1) if keep == "keep" else (0, 1, 0, 1))
    reference = load_reference("bailingmoe3")
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


def test_a_rotated_part_of_heads_is_no_deviation() -> None:
    for family in ("bailingmoe", "bailingmoe2", "bailingmoe3", "sarvam-moe"):
        assert describe(config_of(family), "config.json").deviations == ()


def test_dense_layers_of_ling_3_are_those_that_mlp_layer_types_lists() -> None:
    listed = {"first_k_dense_replace": None, "mlp_layer_types": ["dense", *["sparse"] * 3]}
    found = describe(config_of("bailingmoe3") | listed, "c")
    assert found.keys["bailingmoe3.leading_dense_block_count"].value == 1
