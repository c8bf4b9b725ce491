"""Encoders have the same file under the names of published checkpoints and of transformers 5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from described import FOLDER

from dynquant.arch.load_projector import load_projector
from dynquant.transforms import read_weights

PUBLISHED, NEWER = "vision_tower.vision_model.", "vision_tower."


def respelled(source: Path, folder: Path) -> Path:
    """Copy a checkpoint with the names that transformers 5 writes."""
    copy = folder / "model"
    shutil.copytree(source, copy)
    path = copy / "model.safetensors"
    stored = path.read_bytes()
    start = 8 + int.from_bytes(stored[:8], "little")
    header = json.loads(stored[8:start])
    assert any(PUBLISHED in name for name in header)
    found = json.dumps({n.replace(PUBLISHED, NEWER): v for n, v in header.items()}).encode()
    path.write_bytes(len(found).to_bytes(8, "little") + found + stored[start:])
    return copy


@pytest.mark.parametrize("case", ["llava", "llava-siglip", "lfm2vl"])
def test_both_spellings_give_the_same_tensors(case: str, tmp_path: Path) -> None:
    published = load_projector(FOLDER / case).tensors
    newer = load_projector(respelled(FOLDER / case, tmp_path)).tensors
    assert [t.name for t in newer] == [t.name for t in published]
    for one, other in zip(published, newer, strict=True):
        assert one.shape == other.shape
        rows = (read_weights(t.source, 0, t.n_rows) for t in (one, other))
        np.testing.assert_array_equal(*rows)
