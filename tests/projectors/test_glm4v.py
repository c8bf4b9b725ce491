"""The vision encoders of GLM: optional biases, other spellings, and the graph's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from changed_projectors import changed, rename
from places import REFERENCES

from dynquant.arch.load_projector import load_projector
from dynquant.errors import ArchitectureError

FOLDER = REFERENCES / "projectors"
CASES = ("glm4v", "glm-ocr", "glm5next")


@pytest.mark.parametrize("case", CASES)
def test_names_without_the_larger_model_give_the_same_tensors(case: str, tmp_path: Path) -> None:
    copy = changed(case, tmp_path)
    rename(copy, lambda name: name.removeprefix("model."))
    found, plain = load_projector(copy), load_projector(FOLDER / case)
    assert [(t.name, t.shape) for t in found.tensors] == [(t.name, t.shape) for t in plain.tensors]


@pytest.mark.parametrize(("case", "each"), [("glm4v", 24 // 12), ("glm-ocr", 24 // 16)])
def test_the_number_of_heads_has_the_default_of_the_class(
    case: str, each: int, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError, match=f"heads have {each} elements"):
        load_projector(changed(case, tmp_path, {"num_heads": None}))


def test_large_pictures_are_a_warning_but_for_glm5(tmp_path: Path) -> None:
    size = {"size": {"shortest_edge": 12544, "longest_edge": 9633792}}
    for case in ("glm4v", "glm-ocr"):
        found = load_projector(changed(case, tmp_path, images=size))
        assert "--image-max-tokens 6144" in found.deviations[0]
        assert len(found.deviations) == 1


def test_the_numbers_of_tokens_of_glm5_are_those_of_its_processor(tmp_path: Path) -> None:
    keys = load_projector(FOLDER / "glm5next").keys
    assert keys["clip.vision.image_min_pixels"].value == 16 * 28 * 28
    assert keys["clip.vision.image_max_pixels"].value == 30 * 28 * 28
    none = {"min_image_tokens": None, "max_image_tokens": None}
    keys = load_projector(changed("glm5next", tmp_path, images=none)).keys
    assert keys["clip.vision.image_max_pixels"].value == 8000 * 28 * 28
    large = changed("glm5next", tmp_path / "large", images={"max_image_tokens": 2**30})
    with pytest.raises(ArchitectureError, match="max_image_tokens is 1073741824"):
        load_projector(large)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"spatial_merge_size": 4}, "spatial_merge_size is 4"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ({"in_channels": 4}, "in_channels is 4"),
        ({"out_hidden_size": 40}, "out_hidden_size is 40, and the language model has hidden_size"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"rope_parameters": {"rope_theta": 500.0}}, "rope_theta is 500.0"),
        ({"num_heads": 4}, "heads have 6 elements"),
    ],
)
def test_settings_that_the_graph_cannot_compute_are_refused(
    case: str, vision: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError) as e:
        load_projector(changed(case, tmp_path, vision))
    assert len(e.value.messages) == 1
    assert message in e.value.messages[0]
