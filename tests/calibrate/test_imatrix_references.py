"""The sums and counts that `dynquant imatrix` collects are those of llama.cpp's own inputs.

The oracle is llama.cpp's graph of the same checkpoint in F32: what each matrix is multiplied by is
read while it computes (support/activations.py). The imatrix files are stored, so that torch is not
needed; test_imatrix_reproduced.py makes them again.
"""

from __future__ import annotations

import ctypes
import hashlib
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from activations import (
    Inputs,
    Tensor,
    check_layout,
    differences,
    has_counts,
    inputs_of,
    matching,
    windows_of_text,
)
from calibrated import IMATRICES, STORED, bound_of
from places import REFERENCES
from subsets import slow_except

import dynquant
from dynquant.checkpoint.gguf import read_gguf
from dynquant.importance.imatrix import Imatrix, read_imatrix

pytestmark = pytest.mark.oracle

FAST = ("deepseek-v3", "gemma3", "qwen3moe")


@cache
def found(family: str) -> tuple[Imatrix, dict[str, Inputs]]:
    """Return the stored imatrix, and what llama.cpp multiplies for the same tokens."""
    file = IMATRICES / f"{family}.gguf"
    stored, keys = read_imatrix(file), read_gguf(file).keys
    assert stored.chunk_count is not None and stored.chunk_size is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f32.gguf")
        dynquant.convert(REFERENCES / family, path, recipe="f32", threads=1)
        text = (IMATRICES / "text.txt").read_bytes()
        windows = windows_of_text(path, text, stored.chunk_size, stored.chunk_count)
        read = hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()
        assert read == keys["dynquant.imatrix.tokens_sha256"].value, "other tokens were read"
        return stored, inputs_of(path, windows.tolist())


def test_every_kind_of_family_is_stored() -> None:
    assert len(STORED) >= 12


@pytest.mark.parametrize("family", slow_except(FAST, STORED))
def test_counts_are_those_of_llama_cpp(family: str) -> None:
    stored, oracle = found(family)
    assert not [n for n, entry in stored.entries.items() if not has_counts(entry, oracle[n])]


@pytest.mark.parametrize("family", slow_except(FAST, STORED))
def test_sums_are_those_of_llama_cpp(family: str) -> None:
    stored, oracle = found(family)
    bound = bound_of(family)
    other = {
        name: difference
        for name, entry in stored.entries.items()
        if max(difference := differences(entry, matching(entry, oracle[name]))) > bound
    }
    assert not other


@pytest.mark.parametrize("family", slow_except(FAST, STORED))
def test_every_matrix_that_llama_cpp_multiplies_by_is_in_the_file(family: str) -> None:
    stored, oracle = found(family)
    assert set(oracle) == set(stored.entries) != set()


def test_exchanged_channels_are_found() -> None:
    stored, oracle = found("qwen3moe")
    entry = stored.entries["blk.0.attn_q.weight"]
    inputs = oracle["blk.0.attn_q.weight"]
    order = np.arange(inputs.squares.shape[1])
    order[:2] = 1, 0
    changed = Inputs(inputs.counts, inputs.linear[:, order], inputs.squares[:, order])
    assert min(differences(entry, changed)) > 10 * bound_of("qwen3moe")


def test_the_layout_of_tensors_is_checked() -> None:
    check_layout()
    for wrong in ("buffer", "ne", "nb", "op", "op_params", "view_src"):
        fields = sorted(Tensor._fields_, key=lambda field: field[0] == wrong)  # the last one
        moved = type("Moved", (ctypes.Structure,), {"_fields_": fields})
        with pytest.raises(AssertionError, match="ggml_tensor of this wheel"):
            check_layout(moved)
