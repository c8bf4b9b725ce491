"""`dynquant imatrix` gives the stored files, and collects llama.cpp's inputs of all families.

The oracle is llama.cpp's graph, as in test_imatrix_references.py. Needs torch: `pytest -m torch`
where the extra `calibrate` is installed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from activations import differences, has_counts, inputs_of, matching, windows_of_text
from calibrated import IMATRICES, OTHER_EXPERTS, OUTPUT_FACTOR, RUNNABLE, STORED, bound_of
from places import REFERENCES

import dynquant
from dynquant.checkpoint.gguf import read_gguf
from dynquant.importance.imatrix import read_imatrix
from dynquant.texts import Text

torch: Any = pytest.importorskip("torch", reason="needs the extra calibrate")

from dynquant.calibrate.imatrix import Settings, make_imatrix  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

TEXT = Text("text.txt", (IMATRICES / "text.txt").read_bytes())

CONTEXT = 40
"""Tokens of a window: llama.cpp does not compute the sliding window of 40 that phi3 has."""


def made(family: str, out: Path, context: int) -> tuple[str, ...]:
    """Write the imatrix of a family, from two windows; return warnings."""
    return make_imatrix(
        REFERENCES / family,
        out,
        Settings((TEXT,), context, 2, threads=2),
        force=False,
        progress=lambda _, __: None,
        say=lambda _: None,
    )


@pytest.mark.parametrize("family", STORED)
def test_the_stored_file_is_made_again(family: str, tmp_path: Path) -> None:
    stored = read_imatrix(IMATRICES / f"{family}.gguf")
    assert stored.chunk_size is not None
    out = tmp_path / "imatrix.gguf"
    made(family, out, stored.chunk_size)
    again = read_imatrix(out)
    assert again.entries.keys() == stored.entries.keys()
    for name, entry in stored.entries.items():
        own = again.entries[name]
        assert own.counts == entry.counts
        for sums in ("sums", "linear_sums"):
            expected, its = (getattr(e, sums)(0, e.n_values) for e in (entry, own))
            np.testing.assert_allclose(its, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    keys = (read_gguf(path).keys for path in (out, IMATRICES / f"{family}.gguf"))
    one, two = (its["dynquant.imatrix.tokens_sha256"].value for its in keys)
    assert one == two


@pytest.mark.parametrize("family", [f for f in RUNNABLE if f not in OTHER_EXPERTS])
def test_inputs_of_all_matrices_are_those_of_llama_cpp(family: str, tmp_path: Path) -> None:
    file, out = tmp_path / "f32.gguf", tmp_path / "imatrix.gguf"
    warnings = made(family, out, CONTEXT)
    dynquant.convert(REFERENCES / family, file, recipe="f32", threads=1)
    oracle = inputs_of(file, windows_of_text(file, TEXT.content, CONTEXT, 2).tolist())
    entries = read_imatrix(out).entries
    assert entries.keys() == oracle.keys()
    assert not [warning for warning in warnings if "experts were not chosen" not in warning]
    other: dict[str, tuple[float, float]] = {}
    for name, entry in entries.items():
        inputs = matching(entry, oracle[name])
        if name in ("output.weight", "token_embd.weight"):
            factor = OUTPUT_FACTOR.get(family, 1.0)
            linear, squares = inputs.linear / factor, inputs.squares / factor**2
            inputs = replace(inputs, linear=linear, squares=squares)
        assert has_counts(entry, inputs)
        difference = differences(entry, inputs)
        if max(difference) > bound_of(family):
            other[name] = difference
    assert not other
