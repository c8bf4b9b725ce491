"""InternVL: both published forms, refusals, and the encoder of 6B parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from described import FOLDER, refusal, towers_of
from handmade import weights

from dynquant.arch.load_projector import load_projector
from dynquant.arch.towers.vision import class_token_last
from dynquant.tensors import Computed
from dynquant.transforms import read_weights


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("internvl", {"vision_feature_layer": -2}, "vision_feature_layer is -2; llama.cpp comp"),
        (
            "internvl",
            {"vision_feature_select_strategy": "full"},
            "vision_feature_select_strategy is 'full'; llama.cpp computes 'default'",
        ),
        ("internvl", {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'; llama.cpp"),
        ("internvl", {"downsample_ratio": 0.3}, "downsample_ratio is 0.3; llama.cpp joins"),
        ("internvl", {"vision_config.norm_type": "rms_norm"}, "norm_type is 'rms_norm'; llama.cpp"),
        ("internvl", {"vision_config.use_qk_norm": True}, "queries and keys have RMS norms"),
        ("internvl", {"vision_config.use_mean_pooling": False}, "use_mean_pooling is false"),
        ("internvl", {"vision_config.image_size": [56, 84]}, "image_size is [56, 84]; llama.cpp"),
        ("internvl-chat", {"select_layer": -4}, "select_layer is -4; llama.cpp takes"),
        ("internvl-chat", {"ps_version": None}, "ps_version is 'v1'; llama.cpp joins patches"),
        ("internvl-chat", {"force_image_size": 448}, "force_image_size is 448, and vision_config"),
        ("internvl-chat", {"min_dynamic_patch": 2}, "the smallest number of tiles is 2; llama.cpp"),
        ("internvl-chat", {"vision_config.qk_normalization": None}, "have RMS norms"),
        ("internvl-chat", {"vision_config.use_moe": True}, "use_moe is true; llama.cpp"),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    case: str, changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(case, changes)


def test_both_forms_have_the_same_tensors() -> None:
    forms = [load_projector(FOLDER / case) for case in ("internvl", "internvl-chat")]
    ours, published = ({t.name: t.shape for t in model.tensors} for model in forms)
    assert ours == published
    assert ours["v.position_embd.weight"] == (17, 24)
    assert ours["v.class_embd"] == (24,)


@pytest.mark.parametrize("shape", [(1, 17, 24), (17, 24)])
def test_the_position_of_the_class_token_comes_last(shape: tuple[int, ...]) -> None:
    stored = weights(*shape)
    found = class_token_last(Computed(stored))
    first, *rest = stored.reshape(17, 24)
    expected = np.stack([*rest, first])
    assert found.shape == (17, 24)
    for start, stop in ((0, 17), (3, 5), (15, 17), (16, 17)):
        np.testing.assert_array_equal(read_weights(found, start, stop), expected[start:stop])


@pytest.mark.parametrize(
    ("case", "bias", "norms"),
    [
        ("internvl", "attention_bias", "use_qk_norm"),
        ("internvl-chat", "qkv_bias", "qk_normalization"),
    ],
)
def test_the_encoder_of_6b_has_rms_norms(case: str, bias: str, norms: str) -> None:
    """As OpenGVLab/InternVL2_5-26B and larger."""
    changes = {
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_attention_heads": 25,
        "num_hidden_layers": 45,
        "norm_type": "rms_norm",
        bias: False,
        norms: True,
    }
    (tower,) = towers_of(case, {f"vision_config.{n}": value for n, value in changes.items()})
    names = {row.name.removeprefix("v.blk.{}.") for row in tower.rows}
    assert {"attn_q_norm.weight", "attn_k_norm.weight", "ln1.weight"} <= names
    assert not {"ln1.bias", "ln2.bias", "attn_q.bias", "attn_v.bias"} & names


def test_published_settings_are_known() -> None:
    """As OpenGVLab/InternVL3-1B."""
    vision = {
        "_name_or_path": "OpenGVLab/InternViT-6B-448px-V1-5",
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_intern_vit.InternVisionConfig"},
        "capacity_factor": 1.2,
        "drop_path_rate": 0.1,
        "dropout": 0.0,
        "eval_capacity_factor": 1.4,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": 448,
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": 4096,
        "laux_allreduce": "all_nodes",
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "moe_coeff_ratio": 0.5,
        "moe_intermediate_size": 768,
        "moe_output_scale": 4.0,
        "noisy_gate_policy": "RSample_before",
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_experts": 8,
        "num_hidden_layers": 24,
        "num_routed_experts": 4,
        "num_shared_experts": 4,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
        "shared_expert_intermediate_size": 3072,
        "torch_dtype": "bfloat16",
        "use_bfloat16": True,
        "use_flash_attn": False,
        "use_moe": False,
        "use_residual": True,
        "use_rts": False,
        "use_weighted_residual": False,
    }
    changes = {"vision_config": vision, "force_image_size": 448}
    (tower,) = towers_of("internvl-chat", changes, images={"size": 448, "crop_size": 448})
    assert not any("not known" in warning for warning in tower.deviations)
    assert tower.dimensions("places hidden") == (1025, 1024)
    assert tower.dimensions("text joined") == (32, 4096)


def test_tiles_are_reported_once() -> None:
    (tower,) = towers_of("internvl", {"vision_config.hidden_act": "gelu_pytorch_tanh"})
    assert len(tower.deviations) == 1
    assert "divides pictures into other tiles" in tower.deviations[0]


def test_the_numbers_of_tiles_are_those_of_the_processor_or_of_config_json() -> None:
    name = "clip.vision.preproc_max_tiles"
    (tower,) = towers_of("internvl", {}, images={"max_patches": None})
    assert name not in tower.keys
    (tower,) = towers_of("internvl", {}, images={"max_patches": 9})
    assert tower.keys[name].value == 9
    (tower,) = towers_of("internvl-chat", {"max_dynamic_patch": 12}, images={"max_patches": 9})
    assert tower.keys[name].value == 12
