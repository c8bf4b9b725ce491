"""Files of second moments: what was written is read, and what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dynquant.errors import ImportanceError
from dynquant.importance.moments import (
    N_SIGNS,
    Input,
    MomentsWriter,
    full_matrix,
    read_moments,
    upper_triangle,
)

DENSE = Input("blk.0.attn_q", ("blk.0.attn_q.weight", "blk.0.attn_k.weight"), 5)
EXPERTS = Input("blk.0.ffn_down_exps", ("blk.0.ffn_down_exps.weight",), 4, 3, 3)


def written(path: Path) -> dict[str, np.ndarray]:
    """Write both inputs; return all arrays."""
    rng = np.random.default_rng(0)
    writer = MomentsWriter(path, [DENSE, EXPERTS], {"model": "m"})
    writer.begin()
    arrays: dict[str, np.ndarray] = {}
    for each in (DENSE, EXPERTS):
        for name, (kind, shape) in each.arrays.items():
            arrays[name] = rng.normal(size=shape).astype({"F32": "f4", "F16": "f2"}[kind])
            if shape[0] == 3:
                for row in (2, 0, 1):
                    writer.write(name, arrays[name][row], row)
            else:
                writer.write(name, arrays[name])
    assert not path.exists()
    writer.finish()
    assert path.stat().st_size == writer.n_bytes
    return arrays


def test_the_file_is_safetensors_and_has_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.moments.safetensors"
    arrays = written(path)
    stored = load_file(path)
    assert stored.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array)
    found = read_moments(path)
    assert found.inputs == {
        "blk.0.attn_q.weight": DENSE,
        "blk.0.attn_k.weight": DENSE,
        "blk.0.ffn_down_exps.weight": EXPERTS,
    }
    assert found.metadata["model"] == "m"
    own = found.arrays("blk.0.attn_k.weight")
    assert own.keys() == {"squares", "counts", "correlations", "held_out"}
    np.testing.assert_array_equal(own["held_out"], arrays["blk.0.attn_q.held_out"])


def test_sizes_are_known_before() -> None:
    assert DENSE.n_bytes == 4 * 5 + 4 + 2 * 10 + 4 * N_SIGNS * 5
    assert EXPERTS.n_bytes == 3 * (4 * 4 + 4 + 2 * 6 + 4 * N_SIGNS * 4)


def test_a_triangle_has_the_correlations_of_the_channels() -> None:
    x = np.random.default_rng(1).normal(size=(200, 6)).astype(np.float32) * [1, 9, 1e-3, 0, 1, 50]
    x[:, 4] = -x[:, 0]
    products = np.triu(x.T @ x).astype(np.float32)
    found = full_matrix(upper_triangle(products), 6)
    norms = np.linalg.norm(x, axis=0)
    expected = (x / np.where(norms, norms, 1)).T @ (x / np.where(norms, norms, 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(found, expected, atol=2**-11)
    assert found[0, 4] == -1
    assert not found[3, [0, 1, 2, 4, 5]].any()


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.moments.safetensors"
    written(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    found = read_moments(path)
    found.arrays("blk.0.attn_q.weight")
    with pytest.raises(ImportanceError, match=r"blk\.0\.ffn_down_exps: was changed"):
        found.arrays("blk.0.ffn_down_exps.weight")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.moments.safetensors"
    written(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImportanceError, match=r"m\.moments\.safetensors: is incomplete"):
        read_moments(path)


def test_other_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(ImportanceError, match="is not a file of moments"):
        read_moments(path)


def test_a_header_that_contradicts_its_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.moments.safetensors"
    written(path)
    content = path.read_bytes().replace(b"[5, 256", b"[5,  56").replace(b"[1, 10]", b"[2,  5]")
    path.write_bytes(content)
    with pytest.raises(ImportanceError, match="its header is damaged"):
        read_moments(path)


def test_an_interrupted_file_is_known_by_its_plan(tmp_path: Path) -> None:
    path = tmp_path / "m.moments.safetensors"
    writer = MomentsWriter(path, [DENSE], {"model": "m"})
    assert not writer.is_begun
    writer.begin()
    assert writer.is_begun
    assert MomentsWriter(path, [DENSE], {"model": "m"}).is_begun
    assert not MomentsWriter(path, [DENSE], {"model": "n"}).is_begun
    assert not MomentsWriter(path, [DENSE, EXPERTS], {"model": "m"}).is_begun
