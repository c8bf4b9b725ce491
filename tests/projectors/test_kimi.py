"""MoonViT: the order of rotated rows, other spellings, warnings, and the graphs' limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_projectors import changed, rename
from places import REFERENCES

from dynquant.arch.load_projector import load_projector
from dynquant.arch.towers.rotary import one_direction_after_the_other
from dynquant.errors import ArchitectureError
from dynquant.tensors import Computed

FOLDER = REFERENCES / "projectors"


def test_pairs_of_one_direction_precede_those_of_the_other() -> None:
    # Two heads of two pairs for each direction, and one head that stays.
    rows = Computed(np.arange(24, dtype=np.float32)[:, None])
    source = one_direction_after_the_other(rows, n_head=2, n_kept=1)
    found = np.empty(96, np.uint8)
    source.read(0, 24, found)
    first = [0, 1, 4, 5, 2, 3, 6, 7]
    expected = [*first, *(8 + row for row in first), *range(16, 24)]
    assert found.view("<f4").tolist() == expected


def test_any_rows_of_a_reordered_matrix_can_be_read() -> None:
    rows = Computed(np.arange(24, dtype=np.float32)[:, None])
    source = one_direction_after_the_other(rows, n_head=3)
    whole, part = np.empty(96, np.uint8), np.empty(20, np.uint8)
    source.read(0, 24, whole)
    source.read(7, 12, part)
    assert part.tobytes() == whole[28:48].tobytes()


@pytest.mark.parametrize("names", [("proj.linear_1", "proj.linear_2"), ("linear_1", "linear_2")])
def test_other_names_of_the_projector_give_the_same_tensors(
    names: tuple[str, str], tmp_path: Path
) -> None:
    copy = changed("kimik25", tmp_path)
    rename(copy, lambda n: n.replace("proj.0", names[0]).replace("proj.2", names[1]))
    found, plain = load_projector(copy), load_projector(FOLDER / "kimik25")
    assert [(t.name, t.shape) for t in found.tensors] == [(t.name, t.shape) for t in plain.tensors]


def test_names_of_settings_in_transformers_give_the_same_keys(tmp_path: Path) -> None:
    vision = {f"vt_{name}": None for name in ("hidden_size", "intermediate_size")}
    usual = {"hidden_size": 24, "intermediate_size": 40, "pos_emb_height": 5, "pos_emb_width": 5}
    old = {"init_pos_emb_height": None, "init_pos_emb_width": None}
    copy = changed("kimik25", tmp_path, {**vision, **old, **usual})
    found = load_projector(copy)
    assert found.keys == load_projector(FOLDER / "kimik25").keys
    assert found.deviations == ()


def test_the_processor_states_the_largest_picture_of_a_kimi_k25(tmp_path: Path) -> None:
    most = "clip.vision.image_max_pixels"
    assert load_projector(FOLDER / "kimik25").keys[most].value == 64 * 14 * 14
    norm = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    copy = changed("kimik25", tmp_path, images={"media_proc_cfg": norm})
    assert load_projector(copy).keys[most].value == 16384 * 14 * 14
    large = {"media_proc_cfg": {**norm, "in_patch_limit": 2**30}}
    with pytest.raises(ArchitectureError, match="in_patch_limit is 1073741824"):
        load_projector(changed("kimik25", tmp_path / "large", images=large))


def test_large_pictures_of_a_kimi_vl_are_a_warning(tmp_path: Path) -> None:
    assert len(load_projector(FOLDER / "kimivl").deviations) == 1
    copy = changed("kimivl", tmp_path, images={"in_token_limit": 16384})
    assert "--image-max-tokens 4096" in load_projector(copy).deviations[1]


@pytest.mark.parametrize("case", ["kimivl", "kimik25"])
@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"merge_kernel_size": [4, 4]}, "merge_kernel_size is [4, 4]"),
        ({"init_pos_emb_width": 6}, "llama.cpp computes a square"),
        ({"rope_theta": 500}, "rope_theta is 500"),
    ],
)
def test_settings_of_the_encoder_that_are_not_computed_are_refused(
    case: str, vision: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError) as e:
        load_projector(changed(case, tmp_path, vision))
    assert len(e.value.messages) == 1
    assert message in e.value.messages[0]


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"vt_num_attention_heads": 4}, "heads have 6 elements"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"projector_ln_eps": 1e-6}, "projector_ln_eps is 1e-06"),
        ({"mm_projector_type": "patchmergerv2"}, "mm_projector_type is 'patchmergerv2'"),
        ({"merge_type": "average"}, "merge_type is 'average'"),
        ({"mm_hidden_size": 25}, "mm_hidden_size is 25; llama.cpp computes 24"),
        ({"text_hidden_size": 33}, "text_hidden_size is 33; llama.cpp computes 32"),
    ],
)
def test_settings_of_kimi_k25_that_are_not_computed_are_refused(
    vision: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError) as e:
        load_projector(changed("kimik25", tmp_path, vision))
    assert len(e.value.messages) == 1
    assert message in e.value.messages[0]
