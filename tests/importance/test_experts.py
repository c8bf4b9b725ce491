"""Experts with few tokens have a mixture of their importance and of what experts have in common.

The oracle is the formula in plain NumPy, of mean squares as a matrix.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade import computed_tensor
from imatrices import Counted, write_counted, write_legacy

from dynquant.arrays import F32
from dynquant.errors import ImportanceError
from dynquant.importance.audit import Importance, audit, gaps
from dynquant.importance.experts import Policy
from dynquant.importance.imatrix import read_imatrix

EXPERTS = "blk.0.ffn_up_exps.weight"
COUNTS = [1, 7, 300, 0, 64]


def positive(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).chisquare(1, shape).astype(np.float32)


def sums(n_channels: int = 11) -> F32:
    """Return sums of squares of experts that differ a hundred times in scale."""
    scales = np.array([1, 100, 3, 1, 0.2])[:, None] * np.maximum(COUNTS, 1)[:, None]
    return (positive(5, n_channels) * scales).astype(np.float32)


def importance_of(
    folder: Path, policy: Policy, data: Counted, name: str = EXPERTS, **changes: object
) -> Importance:
    path = write_counted(folder / "x.gguf", {name: data}, **changes)
    n = len(data[1]) if len(data[1]) > 1 else 5
    found, _ = audit(read_imatrix(path), [computed_tensor(name, n, 4, 11)], policy)
    return found[name]


def mixed(data: Counted, shrink: float) -> np.ndarray:
    """Return the importance of all experts with data, float64 [n_experts, n_channels]."""
    squares, counts = data[0].astype(np.float64), np.array(data[1], float)
    seen = counts > 0
    means = squares[seen] / counts[seen, None]
    scales = means.mean(axis=1)
    shapes = means / scales[:, None]
    weights = counts[seen] / (counts[seen] + shrink)
    layer = np.average(shapes, axis=0, weights=weights)
    n = counts[seen, None]
    found = np.empty((len(counts), squares.shape[1]))
    found[seen] = scales[:, None] * (n * shapes + shrink * layer) / (n + shrink)
    found[~seen] = np.average(scales, weights=weights) * layer
    return found


@pytest.mark.parametrize("shrink", [1, 64, 1000])
def test_importance_is_the_formula(tmp_path: Path, shrink: int) -> None:
    data = sums(), COUNTS
    found = importance_of(tmp_path, Policy(shrink, "mean"), data)
    for expert, wanted in enumerate(mixed(data, shrink)):
        row = found.of(expert)
        assert row is not None
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, wanted, rtol=1e-6)


def test_without_shrinking_seen_experts_have_their_mean_squares(tmp_path: Path) -> None:
    found = importance_of(tmp_path, Policy(0, "mean"), (sums(), COUNTS))
    for expert in (0, 1, 2, 4):
        wanted = sums()[expert] / np.float32(COUNTS[expert])
        np.testing.assert_array_equal(found.of(expert), wanted)
    np.testing.assert_allclose(found.of(3), mixed((sums(), COUNTS), 0)[3], rtol=1e-6)


def test_an_unseen_expert_may_be_weighted_equally(tmp_path: Path) -> None:
    found = importance_of(tmp_path, Policy(64, "uniform"), (sums(), COUNTS))
    assert found.of(3) is None
    np.testing.assert_allclose(found.of(0), mixed((sums(), COUNTS), 64)[0], rtol=1e-6)


def test_an_expert_of_only_zeros_counts_as_unseen(tmp_path: Path) -> None:
    squares = sums()
    squares[1] = 0
    found = importance_of(tmp_path, Policy(64, "mean"), (squares, COUNTS))
    unseen = [n if squares[i].any() else 0 for i, n in enumerate(COUNTS)]
    np.testing.assert_allclose(found.of(1), mixed((squares, unseen), 64)[1], rtol=1e-6)


def test_neurons_are_mixed_with_equal_weights(tmp_path: Path) -> None:
    name = "blk.0.ffn_down_exps.weight"
    found = importance_of(tmp_path, Policy(64, "mean"), (sums(), COUNTS), name)
    for expert in (0, 1, 2, 4):
        means = sums()[expert].astype(float) / COUNTS[expert]
        n = COUNTS[expert]
        wanted = (n * means + 64 * means.mean()) / (n + 64)
        np.testing.assert_allclose(found.of(expert), wanted, rtol=1e-6)
    assert found.of(3) is None


def test_the_scale_of_an_expert_does_not_change_the_others(tmp_path: Path) -> None:
    loud = sums()
    loud[2] *= 1024
    before = importance_of(tmp_path, Policy(64, "mean"), (sums(), COUNTS)).of(0)
    after = importance_of(tmp_path, Policy(64, "mean"), (loud, COUNTS)).of(0)
    np.testing.assert_array_equal(before, after)


def test_means_beyond_the_range_of_float32_stay_finite(tmp_path: Path) -> None:
    squares = np.zeros((5, 11), np.float32)
    squares[:, 0] = 3e38
    row = importance_of(tmp_path, Policy(64, "mean"), (squares, [1, 1, 1, 0, 1])).of(3)
    assert row is not None
    assert np.isfinite(row).all()


@pytest.mark.parametrize("name", ["blk.0.attn_k_b.weight", "blk.0.ssm_up.weight"])
def test_matrices_that_are_not_experts_are_not_mixed(tmp_path: Path, name: str) -> None:
    data = sums(), [9, 9, 9, 9, 9]
    found = importance_of(tmp_path, Policy(64, "mean"), data, name)
    for matrix in range(5):
        np.testing.assert_array_equal(found.of(matrix), sums()[matrix] / np.float32(9))


def test_experts_under_one_count_are_not_mixed(tmp_path: Path) -> None:
    data = sums().reshape(1, -1), [9]
    found = importance_of(tmp_path, Policy(64, "mean"), data)
    np.testing.assert_array_equal(found.of(2), sums()[2] / np.float32(9))


def test_experts_of_the_older_format_are_not_mixed(tmp_path: Path) -> None:
    means = positive(5, 11)
    path = write_legacy(tmp_path / "x.dat", {EXPERTS: means}, n_calls=4)
    found, _ = audit(read_imatrix(path), [computed_tensor(EXPERTS, 5, 4, 11)], Policy(64, "mean"))
    np.testing.assert_array_equal(found[EXPERTS].of(2), means[2])


def test_a_gate_is_mixed_like_the_tensor_with_the_same_inputs(tmp_path: Path) -> None:
    gate = "blk.0.ffn_gate_exps.weight"
    path = write_counted(tmp_path / "x.gguf", {EXPERTS: (sums(), COUNTS)})
    tensors = [computed_tensor(n, 5, 4, 11) for n in (gate, EXPERTS)]
    found, _ = audit(read_imatrix(path), tensors, Policy(64, "mean"))
    for expert in range(5):
        np.testing.assert_array_equal(found[gate].of(expert), found[EXPERTS].of(expert))


@pytest.mark.parametrize(
    ("unseen", "instead"),
    [("mean", "have the mean of their layer"), ("uniform", "channels are weighted equally")],
)
def test_the_warning_says_what_unseen_experts_have(
    tmp_path: Path, unseen: str, instead: str
) -> None:
    path = write_counted(tmp_path / "x.gguf", {EXPERTS: (sums(), COUNTS)})
    imatrix = read_imatrix(path)
    policy = Policy(64, "mean" if unseen == "mean" else "uniform")
    found, _ = audit(imatrix, [computed_tensor(EXPERTS, 5, 4, 11)], policy)
    (message,) = gaps(imatrix, [EXPERTS], found)
    assert f"no importance for 1 of 5 experts in {EXPERTS}; the" in message
    assert message.endswith(instead)


def test_neurons_without_data_are_weighted_equally(tmp_path: Path) -> None:
    name = "blk.0.ffn_down_exps.weight"
    path = write_counted(tmp_path / "x.gguf", {name: (sums(), COUNTS)})
    imatrix = read_imatrix(path)
    found, _ = audit(imatrix, [computed_tensor(name, 5, 4, 11)], Policy(64, "mean"))
    (message,) = gaps(imatrix, [name], found)
    assert message.endswith(f"1 of 5 experts in {name}; their channels are weighted equally")


def test_a_file_that_loses_its_data_during_a_run_is_an_error(tmp_path: Path) -> None:
    found = importance_of(tmp_path, Policy(64, "mean"), (sums(), COUNTS))
    path = tmp_path / "x.gguf"
    content = bytearray(path.read_bytes())
    at = found.entry.offset
    content[at : at + 4 * 11] = bytes(4 * 11)
    path.write_bytes(content)
    with pytest.raises(ImportanceError, match="changed since it was read"):
        found.of(0)
