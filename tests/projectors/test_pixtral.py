"""Pixtral's encoder: other spellings, the mark after a row, warnings, and the graph's limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_projectors import changed, rename
from places import REFERENCES

import dynquant
from dynquant.arch.load_projector import load_projector, projector_of
from dynquant.errors import ArchitectureError, DynquantError

FOLDER = REFERENCES / "projectors"
MARK = "v.token_embd.img_break"


def newer(name: str) -> str:
    """Return a name as transformers 5 has it in memory."""
    if "lm_head" in name:
        return "lm_head.weight"
    return f"model.{name.replace('language_model.model.', 'language_model.')}"


def written(model: object, path: Path) -> bytes:
    """Return the bytes of a file."""
    dynquant.convert(model, path, recipe="f32", threads=1)  # type: ignore[arg-type]
    return path.read_bytes()


def test_names_of_transformers_5_give_the_same_file(tmp_path: Path) -> None:
    copy = changed("mistral3", tmp_path)
    rename(copy, newer)
    found = load_projector(copy)
    plain = load_projector(FOLDER / "mistral3")
    assert written(found, tmp_path / "a.gguf") == written(plain, tmp_path / "b.gguf")


def test_the_mark_is_a_row_of_the_embedding() -> None:
    folder = FOLDER / "mistral3"
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    number = next(token["id"] for token in tokens if token["content"] == "[IMG_BREAK]")
    with (folder / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        start, _ = header["language_model.model.embed_tokens.weight"]["data_offsets"]
        file.seek(8 + size + start + number * 64)
        expected = file.read(64)
    source = next(t for t in load_projector(folder).tensors if t.name == MARK).source
    found = np.empty(64, np.uint8)
    source.read(0, 1, found)
    assert (source.shape, found.tobytes()) == ((32,), expected)


def test_a_vocabulary_without_the_mark_is_refused(tmp_path: Path) -> None:
    copy = changed("mistral3", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (copy / name).read_text("utf-8")
        (copy / name).write_text(text.replace("[IMG_BREAK]", "[IMG_ROW]"), "utf-8")
    with pytest.raises(ArchitectureError, match=r"has no token '\[IMG_BREAK\]'"):
        load_projector(copy)


def test_the_class_of_llava_has_this_projector_for_this_tower_only(tmp_path: Path) -> None:
    config = json.loads((FOLDER / "pixtral" / "config.json").read_text("utf-8"))
    assert projector_of(config, "config.json")
    copy = changed("pixtral", tmp_path, vision={"model_type": "another"})
    with pytest.raises(DynquantError):
        load_projector(copy)


def test_without_an_image_processor_its_defaults_apply(tmp_path: Path) -> None:
    copy = changed("mistral3", tmp_path)
    (copy / "preprocessor_config.json").unlink()
    found = load_projector(copy)
    assert found.keys == load_projector(FOLDER / "mistral3").keys
    assert "up to 3025 tokens" in found.deviations[0]


def test_pictures_within_the_limit_of_llama_cpp_are_no_warning(tmp_path: Path) -> None:
    copy = changed("mistral3", tmp_path, images={"size": {"longest_edge": 896}})
    assert load_projector(copy).deviations == ()


def test_another_epsilon_of_the_projector_is_a_warning(tmp_path: Path) -> None:
    text = json.loads((FOLDER / "mistral3" / "config.json").read_text("utf-8"))["text_config"]
    copy = changed("mistral3", tmp_path, text_config={**text, "rms_norm_eps": 1e-6})
    assert any("rms_norm_eps 1e-06" in warning for warning in load_projector(copy).deviations)


@pytest.mark.parametrize(
    ("vision", "larger", "message"),
    [
        ({"rope_parameters": {"rope_theta": 500.0}}, {}, "rope_theta is 500.0; llama.cpp computes"),
        ({"rope_parameters": {"rope_type": "yarn"}}, {}, "rope_type is 'yarn'"),
        ({"head_dim": 8}, {}, "head_dim is 8; llama.cpp computes hidden_size divided by"),
        ({"num_attention_heads": 4, "head_dim": None}, {}, "heads have 6 elements"),
        ({"num_channels": 1}, {}, "num_channels is 1"),
        ({"hidden_act": "relu"}, {}, "hidden_act is 'relu'"),
        ({}, {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({}, {"vision_feature_layer": -2}, "vision_feature_layer is -2; llama.cpp uses the last"),
        ({}, {"vision_feature_layer": [-1, 2]}, "vision_feature_layer is "),
    ],
)
def test_settings_that_the_graph_cannot_compute_are_refused(
    vision: dict[str, Any], larger: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError) as e:
        load_projector(changed("mistral3", tmp_path, vision, **larger))
    assert [m for m in e.value.messages if message in m] == [*e.value.messages]
    assert len(e.value.messages) == 1


def test_other_results_of_the_encoder_are_refused_by_the_defaults_of_llava(tmp_path: Path) -> None:
    copy = changed(
        "pixtral", tmp_path, vision_feature_layer=None, vision_feature_select_strategy=None
    )
    with pytest.raises(ArchitectureError) as e:
        load_projector(copy)
    assert "vision_feature_layer is -2" in e.value.messages[0]
    assert "vision_feature_select_strategy is 'default'" in e.value.messages[1]


def test_the_longest_side_of_lightonocr_is_that_of_its_processor(tmp_path: Path) -> None:
    key = "clip.vision.preproc_image_size"
    assert load_projector(FOLDER / "lightonocr").keys[key].value == 196
    copy = changed("lightonocr", tmp_path, images={"size": {"longest_edge": 168}})
    assert key not in load_projector(copy).keys


def test_unknown_settings_of_the_encoder_are_reported(tmp_path: Path) -> None:
    copy = changed("mistral3", tmp_path, vision={"new_norm": 2})
    assert any("new_norm" in warning for warning in load_projector(copy).deviations)


def test_a_copy_without_the_encoder_is_reported_as_such(tmp_path: Path) -> None:
    copy = changed("mistral3", tmp_path)
    kept = "language_model."
    rename(copy, lambda name: name if name.startswith(kept) else f"{kept}{name}")
    with pytest.raises(ArchitectureError) as e:
        load_projector(copy)
    assert len(e.value.messages) == 1
    assert "has no tensors of the vision encoder" in e.value.messages[0]
