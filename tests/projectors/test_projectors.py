"""Projectors of tiny models give the embeddings of transformers in llama.cpp.

The oracles are transformers (stored by make_projector_references.py) and llama.cpp's mtmd. Both
compute in float32; llama.cpp looks GELU up in a table of half-floats.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_projectors import changed
from numpy.typing import NDArray
from places import REFERENCES
from subsets import slow_except

import dynquant
from dynquant.arch.load_projector import load_projector, projector_of
from dynquant.arch.projectors import projectors

multimodal: Any = pytest.importorskip("multimodal", reason="needs xllamacpp", exc_type=ImportError)

pytestmark = pytest.mark.oracle

FOLDER = REFERENCES / "projectors"
CASES = tuple(sorted(path.stem for path in FOLDER.glob("*.npz")))
FAST = ("gemma3", "qwen3omni", "qwen3vl")

TOLERANCE = 1e-2
"""Largest permitted distance of the embeddings, as a part of their norm."""

PREDICTED = 0.05
"""Largest permitted difference of a log-probability after a picture or a sound."""

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Medium:
    """A picture or sound, with transformers' results."""

    media: Any
    embeddings: F32
    log_probabilities: F32
    of_another: F32
    ids: NDArray[np.int64]

    def texts(self, n_before: int, n_pieces: int) -> list[list[int]]:
        """Return the tokens of each text before, between and after the pieces of the medium.

        One piece may contain tokens, such as marks after rows of patches, which are embeddings.
        """
        ids = self.ids.tolist()
        if n_pieces == 1:
            return [ids[:n_before], ids[n_before + len(self.embeddings) :]]
        placeholder = ids[n_before]
        runs = groupby(ids, lambda token: token != placeholder)
        return [list(run) for is_text, run in runs if is_text]


@cache
def stored(case: str) -> tuple[str, list[Medium]]:
    """Return the prompt of a case, and its pictures or sounds."""
    found = np.load(FOLDER / f"{case}.npz")
    n = sum(name.startswith("media_") for name in found.files)
    names = ("media", "embeddings", "logprobs", "blind", "ids")
    return str(found["prompt"]), [Medium(*(found[f"{x}_{i}"] for x in names)) for i in range(n)]


def converted(case: str, folder: Path, recipe: str = "f32") -> tuple[Path, Path]:
    """Write the language model and the projector of a case."""
    text, projector = folder / "text.gguf", folder / "mmproj.gguf"
    dynquant.convert(FOLDER / case, text, recipe="f32", threads=1)
    dynquant.convert(load_projector(FOLDER / case), projector, recipe=recipe, threads=1)
    return text, projector


@pytest.mark.parametrize("case", slow_except(FAST, CASES))
def test_pictures_and_sounds_become_the_embeddings_of_transformers(
    case: str, tmp_path: Path
) -> None:
    prompt, media = stored(case)
    with multimodal.Multimodal(*converted(case, tmp_path)) as model:
        for one in media:
            seen = model.see(prompt, [one.media])
            found = np.concatenate(seen.embeddings)
            assert found.shape == one.embeddings.shape
            distance = np.linalg.norm(found - one.embeddings) / np.linalg.norm(one.embeddings)
            assert distance < TOLERANCE
            assert seen.tokens == one.texts(len(seen.tokens[0]), len(seen.embeddings))
            assert sum(map(len, seen.tokens)) == len(one.ids) - len(one.embeddings)
            error = np.abs(seen.log_probabilities - one.log_probabilities).max()
            assert error < PREDICTED
            assert np.abs(one.of_another - one.log_probabilities).max() > 10 * PREDICTED


@pytest.mark.slow
@pytest.mark.parametrize(("case", "n_tokens"), [("qwen2vl", 9), ("qwen2.5vl", 9), ("qwen3vl", 4)])
def test_a_picture_gets_no_more_tokens_than_the_processor_permits(
    case: str, n_tokens: int, tmp_path: Path
) -> None:
    """A square of 84 x 84 pixels has 3 x 3 tokens of 28 pixels a side, and 2 x 2 of 32."""
    model = changed(case, tmp_path, images={"max_pixels": 84 * 84, "min_pixels": 784})
    text, projector = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    dynquant.convert(model, text, recipe="f32", threads=1)
    dynquant.convert(load_projector(model), projector, recipe="f32", threads=1)
    large = np.random.default_rng(1).integers(0, 255, (256, 256, 3), np.uint8)
    with multimodal.Multimodal(text, projector) as loaded:
        (found,) = loaded.see(stored(case)[0], [large]).embeddings
    assert len(found) == n_tokens


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_projectors_in_q8_0_stay_near(case: str, tmp_path: Path) -> None:
    prompt, media = stored(case)
    with multimodal.Multimodal(*converted(case, tmp_path, "q8_0")) as model:
        found = np.concatenate(model.see(prompt, [media[0].media]).embeddings)
    near = media[0].embeddings
    assert np.linalg.norm(found - near) < 0.05 * np.linalg.norm(near)


def test_every_projector_has_a_reference() -> None:
    known = projectors()
    configs = [json.loads((FOLDER / c / "config.json").read_text("utf-8")) for c in CASES]
    covered = {projector_of(config, "config.json") for config in configs}
    assert [name for name, towers in known.items() if towers not in covered] == []
