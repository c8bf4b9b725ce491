"""Stored distributions of F32 files against transformers' logits, through the worker process.

The prompts of tests/references become windows: after the last token of a prompt, the stored
log-probabilities are those that transformers gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agreement import Reference, load_reference
from evaluating import header_of

import dynquant
from dynquant.arrays import F32
from dynquant.evaluate.process import run
from dynquant.evaluate.reference import TOKENS, WINDOWS, distributions_of, read_header
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import Run
from dynquant.evaluate.texts import Windows

pytest.importorskip("xllamacpp", reason="needs xllamacpp", exc_type=ImportError)

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

TOLERANCES = {"tiny-books": 1e-4, "qwen3": 1e-4, "deepseek-v3": 1e-4, "gemma3": 5e-4}
"""Gemma has GELU, which ggml takes from a table of F16."""

AT_MOST = 6
"""Prompts of one length."""


def same_lengths(reference: Reference) -> Iterator[list[int]]:
    """Yield the numbers of prompts of the same length, each of which is a window."""
    lengths = [len(prompt) for prompt in reference.prompts]
    for length in sorted(set(lengths)):
        yield [i for i, n in enumerate(lengths) if n == length >= 8][:AT_MOST]


def stored_after(path: Path, prompts: list[list[int]], n_tokens: int, folder: Path) -> F32:
    """Return float32 [n_prompts, n_tokens]: the stored log-probabilities after each prompt."""
    windows = Windows(np.array([[*p, 0] for p in prompts], np.int32), (0,) * len(prompts))
    store_path = folder / f"{len(prompts[0])}.reference"
    with Store.create(store_path, header_of(windows, n_tokens)) as store:
        store.put(TOKENS, 0, windows.tokens.astype("<i4").tobytes())
        task = Run(
            path=str(path),
            threads=1,
            gpu_layers=0,
            reference=str(store_path),
            results=None,
            windows=WINDOWS,
            answers=str(store_path),
            prompts=[],
            generations=[],
        )
        run(task, None)
        header = read_header(store)
        return np.stack(
            [
                distributions_of(store, header, i).logs.reshape(windows.n_scored, -1)[-1]
                for i in range(len(prompts))
            ]
        )


@pytest.mark.parametrize("family", TOLERANCES)
def test_stored_log_probabilities_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    reference = load_reference(family)
    path = tmp_path / "f32.gguf"
    dynquant.convert(reference.folder, path, recipe="f32", threads=1)
    n_tokens = reference.log_probabilities.shape[1]
    # The two longest lengths: each is a process.
    groups = [g for g in same_lengths(reference) if g][-2:]
    for numbers in groups:
        prompts = [reference.prompts[i] for i in numbers]
        found = stored_after(path, prompts, n_tokens, tmp_path)
        assert np.abs(found - reference.log_probabilities[numbers]).max() < TOLERANCES[family]
