"""The factors of a file of moments, and whether feedback is used for a matrix."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dynquant.arrays import F32, U8
from dynquant.errors import ImportanceError
from dynquant.feedback.factors import KEPT, Factors
from dynquant.feedback.guard import gain_of, sampled
from dynquant.importance.moments import (
    N_SIGNS,
    Input,
    MomentsWriter,
    read_moments,
    upper_triangle,
)
from dynquant.quants import ALL, Batch, QuantType, decode, encode
from dynquant.quants.feedback import Feedback, factor_of

N = 256
DENSE = Input("blk.0.ffn_up", ("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"), N)
SHARED = Input("blk.0.ffn_up_exps", ("blk.0.ffn_up_exps.weight",), N, 3)
EACH = Input("blk.1.ffn_up_exps", ("blk.1.ffn_up_exps.weight",), N, 3, 3)


class Rows:
    """Rows in memory, as a source; it counts the rows that are read."""

    def __init__(self, x: F32) -> None:
        self.x, self.n_read = x, 0
        self.stored: QuantType = ALL["F32"]
        self.shape = x.shape

    def read(self, start: int, stop: int, into: U8) -> None:
        self.n_read += stop - start
        into[:] = self.x[start:stop].view(np.uint8).ravel()


def inputs(seed: int, n: int = 2000) -> F32:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, N)) @ (rng.standard_normal((N, N)) / np.arange(1, N + 1))
    return mixed.astype(np.float32)


def written(path: Path, *, agree: bool = True) -> Path:
    """A file of moments; agree: whether the held-out text is like the other."""
    all_inputs = [DENSE, SHARED, EACH]
    writer = MomentsWriter(path, all_inputs, {})
    writer.begin()
    for k, each in enumerate(all_inputs):
        x = inputs(k)
        second = (x.T @ x / len(x)).astype(np.float32)
        signs = np.random.default_rng(9).choice([-1, 1], (N_SIGNS, len(x))).astype(np.float32)
        held_out = signs @ (x if agree else x[:, ::-1]) / np.float32(np.sqrt(N_SIGNS * len(x)))
        arrays = {
            "squares": np.tile(second.diagonal(), (each.n_matrices, 1)),
            "counts": np.full(each.n_matrices, len(x), np.float32),
            "correlations": np.tile(upper_triangle(second), (each.n_moments, 1)),
            "held_out": np.tile(held_out, (each.n_moments, 1, 1)),
        }
        for name, values in arrays.items():
            writer.write(f"{each.name}.{name}", values)
    writer.finish()
    return path


def test_matrices_without_own_correlations_share_a_factor(tmp_path: Path) -> None:
    factors = Factors(read_moments(written(tmp_path / "m")))
    up, gate = (factors.of(name, 0, 0.1) for name in DENSE.tensors)
    assert up is gate
    assert factors.of(SHARED.tensors[0], 0, 0.1) is factors.of(SHARED.tensors[0], 2, 0.1)
    assert factors.of(EACH.tensors[0], 0, 0.1) is not factors.of(EACH.tensors[0], 2, 0.1)
    correlations = factors.moments.row(DENSE.tensors[0], "correlations", 0)
    assert up.upper.tobytes() == factor_of(correlations, N, 0.1).upper.tobytes()


def test_few_factors_stay_in_memory(tmp_path: Path) -> None:
    factors = Factors(read_moments(written(tmp_path / "m")))
    first = factors.of(DENSE.tensors[0], 0, 0.1)
    for k in range(KEPT):
        factors.of(DENSE.tensors[0], 0, 0.2 + k)
    assert factors.of(DENSE.tensors[0], 0, 0.1) is not first


def test_many_threads_make_a_factor_once(tmp_path: Path) -> None:
    factors = Factors(read_moments(written(tmp_path / "m")))
    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(factors.of, DENSE.tensors[0], 0, 0.1) for _ in range(12)]
        assert len({id(f.result()) for f in found}) == 1


def test_damaged_moments_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "m")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last input
    path.write_bytes(content)
    factors = Factors(read_moments(path))
    factors.of(DENSE.tensors[0], 0, 0.1)
    with pytest.raises(ImportanceError, match=r"blk\.1\.ffn_up_exps: was changed"):
        factors.of(EACH.tensors[0], 0, 0.1)


def test_held_out_sums_of_experts_have_the_sizes_of_each(tmp_path: Path) -> None:
    factors = Factors(read_moments(written(tmp_path / "m")))
    squares = factors.moments.row(SHARED.tensors[0], "squares")[0]
    one = factors.held_out(SHARED.tensors[0], 0, squares)
    four = factors.held_out(SHARED.tensors[0], 0, 4 * squares)
    assert np.allclose(four, 2 * one)
    own = factors.held_out(EACH.tensors[0], 0, squares)
    assert np.allclose(own, factors.held_out(EACH.tensors[0], 0, 4 * squares))


@pytest.mark.parametrize(
    ("first", "n_rows", "expected"),
    [
        (0, 10, [(0, 10)]),
        (100, 64, [(100, 164)]),
        (0, 65, [(0, 16), (16, 32), (32, 48), (49, 65)]),
        (1000, 1000, [(1000, 1016), (1328, 1344), (1656, 1672), (1984, 2000)]),
    ],
)
def test_samples_are_spread_over_the_rows(
    first: int, n_rows: int, expected: list[tuple[int, int]]
) -> None:
    assert list(sampled(first, n_rows)) == expected


@pytest.mark.parametrize("agree", [True, False])
def test_feedback_is_taken_only_where_held_out_text_gains(tmp_path: Path, agree: bool) -> None:
    factors = Factors(read_moments(written(tmp_path / "m", agree=agree)))
    name = DENSE.tensors[0]
    importance = factors.moments.row(name, "squares")[0]
    w = np.random.default_rng(1).standard_normal((300, N)).astype(np.float32)
    source = Rows(w)
    batch = Batch(np.empty(0, np.uint8), ALL["F32"], N, ALL["IQ2_XXS"], importance)
    feedback = Feedback(factors.of(name, 0, 0.05), importance, 2)
    panels = factors.held_out(name, 0, importance)
    gain = gain_of(source, 0, 300, batch, feedback, panels)
    assert gain.is_taken == agree
    assert source.n_read == 64


def test_a_gain_is_measured_by_the_held_out_sums(tmp_path: Path) -> None:
    factors = Factors(read_moments(written(tmp_path / "m")))
    name = DENSE.tensors[0]
    importance = factors.moments.row(name, "squares")[0]
    sums = factors.moments.row(name, "held_out", 0)
    w = np.random.default_rng(1).standard_normal((20, N)).astype(np.float32)
    x = w.astype(np.float16).view(np.uint8)
    batch = Batch(np.empty(0, np.uint8), ALL["F16"], N, ALL["Q4_0"], importance)

    class Halves(Rows):
        def read(self, start: int, stop: int, into: U8) -> None:
            into[:] = x[start:stop].ravel()

    source = Halves(w)
    source.stored = ALL["F16"]
    feedback = Feedback(factors.of(name, 0, 0.05), importance, 0)
    gain = gain_of(source, 0, 20, batch, feedback, factors.held_out(name, 0, importance))
    halves = w.astype(np.float16).astype(np.float32)
    e = halves - decode(encode(halves, "Q4_0", importance), "Q4_0", N)
    assert np.isclose(gain.plain, np.square(e.astype(np.float64) @ sums.T).sum(), rtol=1e-4)
