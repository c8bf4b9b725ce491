"""LLaVA's encoders: layers, refusals, and what differs in llama.cpp."""

from __future__ import annotations

from typing import Any

import pytest
from described import FOLDER, refusal, towers_of

from dynquant.arch.load_projector import load_projector


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": -5}, "vision_feature_layer is -5; the encoder has the 4 layers"),
        ({"vision_feature_layer": 5}, "vision_feature_layer is 5; the encoder has the 4 layers"),
        ({"vision_feature_layer": [-2, 3]}, "vision_feature_layer is [-2, 3], but should be a val"),
        ({"vision_feature_select_strategy": "full"}, "llama.cpp computes this encoder with 'defa"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'; llama.cpp computes"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias is false; llama.cpp"),
        ({"vision_config.hidden_act": "relu"}, "hidden_act is 'relu'; llama.cpp computes"),
        ({"vision_config.num_channels": 1}, "num_channels is 1; llama.cpp computes"),
        ({"vision_config.intermediate_size": 24}, "intermediate_size equal to hidden_size 24"),
        (
            {"vision_config.model_type": "dinov2"},
            "of model_type clip_vision_model or pixtral or siglip_vision_model",
        ),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    assert message in refusal("llava", changes)


def test_siglip_has_no_class_token_to_leave_out() -> None:
    changes = {"vision_feature_select_strategy": "default"}
    assert "llama.cpp computes this encoder with 'full'" in refusal("llava-siglip", changes)


@pytest.mark.parametrize(("asked", "computed"), [(-2, 3), (-1, 4), (3, 3), (1, 1)])
def test_the_file_has_the_layers_up_to_the_one_whose_output_is_used(
    asked: int, computed: int
) -> None:
    (tower,) = towers_of("llava", {"vision_feature_layer": asked})
    assert tower.n_layers == computed
    assert tower.keys["clip.vision.block_count"].value == computed
    assert tower.keys["clip.vision.feature_layer"].value == (computed,)


def test_later_layers_and_the_last_norm_are_left_out_with_a_reason() -> None:
    model = load_projector(FOLDER / "llava")
    assert {t.parts.layer for t in model.tensors} == {None, 0, 1, 2}
    reasons = {name.rpartition("encoder.")[2]: why for name, why in model.ignored.items()}
    assert reasons["layers.3.mlp.fc1.weight"] == "after the layer whose output is used"
    assert sum("layers.3." in name for name in model.ignored) == 16
    assert sum("post_layernorm" in name for name in model.ignored) == 2


def test_warnings_state_what_llama_cpp_does_with_pictures() -> None:
    (seen,) = towers_of("llava", {})
    assert len(seen.deviations) == 2
    assert "llama.cpp leaves out the first patch of each picture" in seen.deviations[0]
    assert "own image processor crops them to their middle" in seen.deviations[1]
    (padded,) = towers_of("llava", {}, images={"do_pad": True})
    assert len(padded.deviations) == 1
    (stretched,) = towers_of("llava-siglip", {})
    assert len(stretched.deviations) == 1
    assert "own image processor stretches them" in stretched.deviations[0]


def test_published_settings_rely_on_defaults() -> None:
    """As llava-hf/llava-1.5-7b-hf: neither the width of its Llama nor CLIP's activation."""
    vision = {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    }
    text = {"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32064}
    changes = {"vision_config": vision, "text_config": text}
    (tower,) = towers_of("llava", changes, images={"crop_size": {"height": 336, "width": 336}})
    assert tower.keys["clip.vision.projection_dim"].value == 4096
    assert tower.keys["clip.vision.block_count"].value == 23
    assert tower.keys["clip.vision.attention.layer_norm_epsilon"].value == 1e-5
    assert "clip.use_gelu" not in tower.keys
    assert tower.dimensions("places hidden") == (577, 1024)
    assert not any("not known" in warning for warning in tower.deviations)


def test_llava_next_is_refused_with_the_reason() -> None:
    changes = {"architectures": ["LlavaNextForConditionalGeneration"]}
    assert "llama.cpp's graph neither adds an embedding after each row" in refusal("llava", changes)
