"""A file of tiny-books in each block type predicts text in llama.cpp.

The pinned wheel runs all types of the gguf package on the CPU except Q8_1 and Q8_K, which are for
activations. (Types that are not in ALL were tried with ggml's encoder.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import TINY_BOOKS, Reference, load_reference
from handmade import recipe
from imatrices import write_legacy
from subsets import slow_except

import dynquant
from dynquant.importance.imatrix import Imatrix
from dynquant.quants import ALL

llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)

pytestmark = pytest.mark.oracle

N_VOCAB = 2048
"""Perplexity of a model to which all tokens are equally likely."""

PREDICTED = range(20, 200, 9)
"""Positions of the predicted tokens in the longest prompt, which has 200 tokens."""

# The embedding is also the output matrix: if it is ternary, ggml's TQ1_0 has a perplexity of 9,138
# at these positions; if it is Q8_0, 1,061. The original model has 78.
EMBEDDING = "rules: [{role: token_embd, type: Q8_0}]"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference(TINY_BOOKS)


@pytest.fixture(scope="module")
def imatrix(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Imatrix:
    """A random imatrix, in which channels differ a little."""
    rng = np.random.default_rng(0)
    means = {
        t.name: rng.uniform(0.5, 1.5, t.n_per_row).astype(np.float32)
        for t in dynquant.load_model(reference.folder).tensors
        if t.name.startswith("blk.") and len(t.shape) == 2
    }
    return dynquant.load_imatrix(write_legacy(tmp_path_factory.mktemp("made-up") / "i.dat", means))


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(["Q4_K"], ALL))
def test_a_file_of_one_type_predicts_better_than_chance(
    name: str, reference: Reference, imatrix: Imatrix, tmp_path: Path
) -> None:
    out = tmp_path / f"{name}.gguf"
    plan = dynquant.convert(
        reference.folder, out, recipe=recipe(name, EMBEDDING), imatrix=imatrix, threads=2
    ).plan
    quantized = {t.type.name for t in plan.tensors if t.name in imatrix.entries}
    assert quantized == {name}
    text = max(reference.prompts, key=len)
    found = llamacpp.log_probabilities(out, [text[:n] for n in PREDICTED])
    assert np.isfinite(found).all()
    surprise = [-float(row[text[n]]) for row, n in zip(found, PREDICTED, strict=True)]
    assert np.exp(np.mean(surprise)) < N_VOCAB
