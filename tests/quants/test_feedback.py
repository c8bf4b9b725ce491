"""Error feedback: codes that make the error of a matrix's outputs small."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from dynquant.arrays import F16, F32, F64, U8
from dynquant.errors import EncodeError
from dynquant.importance.moments import full_matrix, upper_triangle
from dynquant.quants import ALL, decode, encode
from dynquant.quants.codec import NotFiniteError, isas
from dynquant.quants.feedback import (
    Factor,
    Feedback,
    encode_floats_with_feedback,
    factor_of,
    output_errors,
    panels_of,
)
from dynquant.quants.search import Search

BLOCKS = [name for name in ALL if ALL[name].block_size > 1]
PLAIN = Search(gain="least-squares")
RNG = np.random.default_rng


def inputs(n: int, n_tokens: int, seed: int = 0) -> F32:
    """Inputs whose channels are correlated, and of different sizes."""
    rng = RNG(seed)
    mixed = rng.standard_normal((n_tokens, n)) @ (
        rng.standard_normal((n, n)) * np.arange(1, n + 1) ** -0.6
    )
    return (mixed * np.exp(0.7 * rng.standard_normal(n))).astype(np.float32)


def weights(rows: int, n: int, seed: int = 1) -> F32:
    return RNG(seed).standard_t(5, (rows, n)).astype(np.float32) * np.float32(0.02)


def moments(x: F32) -> tuple[F16, F32]:
    """Correlations and mean squares of inputs."""
    second = (x.T.astype(np.float64) @ x / len(x)).astype(np.float32)
    return upper_triangle(second), second.diagonal().copy()


def matrix_of(correlations: F16, importance: F32, damping: float) -> F64:
    """H, with its damping."""
    n = len(importance)
    c = full_matrix(correlations, n).astype(np.float64) + damping * np.eye(n)
    scale = np.sqrt(importance.astype(np.float64))
    return c * scale[:, None] * scale


def encoded(
    w: F32, name: str, factor: Factor, importance: F32, sweeps: int = 0, search: Search = PLAIN
) -> tuple[U8, F64]:
    out = np.empty((len(w), ALL[name].row_size(w.shape[1])), np.uint8)
    losses = encode_floats_with_feedback(
        w.view(np.uint8), ALL["F32"], ALL[name], out, Feedback(factor, importance, sweeps), search
    )
    return out, losses


def losses_of(w: F32, blocks: U8, name: str, h: F64) -> F64:
    e = w.astype(np.float64) - decode(blocks, name, w.shape[1])
    return ((e @ h) * e).sum(axis=1)


# ---- the factor ----


@pytest.mark.parametrize("n", [16, 32, 256, 288, 576, 800])
@pytest.mark.parametrize("damping", [0.01, 0.2])
def test_the_factor_times_its_transpose_is_the_damped_correlations(n: int, damping: float) -> None:
    correlations, _ = moments(inputs(n, 4 * n))
    found = dense(factor_of(correlations, n, damping))
    expected = full_matrix(correlations, n) + damping * np.eye(n)
    assert not np.tril(found, -1).any()
    assert np.abs(found @ found.T - expected).max() < 2e-6


def dense(factor: Factor) -> F64:
    """L as a matrix."""
    n, found, at = factor.n, np.zeros((factor.n, factor.n)), 0
    for first in range(0, n, 256):
        rows = min(256, n - first)
        for column in range(first, n, 16):
            panel = factor.upper[at : at + 16 * rows].reshape(rows, 16)
            found[first : first + rows, column : column + 16] = panel
            at += 16 * rows
    assert at == len(factor.upper)
    return found


def test_tasks_of_a_factor_may_run_in_any_order() -> None:
    correlations, _ = moments(inputs(1056, 2000))

    def backwards(tasks: Iterable[Callable[[], object]]) -> None:
        for task in reversed(list(tasks)):
            task()

    one, other = factor_of(correlations, 1056, 0.05), factor_of(correlations, 1056, 0.05, backwards)
    assert one.upper.tobytes() == other.upper.tobytes()
    assert one.diagonal.tobytes() == other.diagonal.tobytes()
    assert one.schur.tobytes() == other.schur.tobytes()


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_correlations_that_no_inputs_can_have_are_refused(value: float) -> None:
    n = 32
    with pytest.raises(EncodeError, match="no inputs can have these correlations"):
        factor_of(np.full(n * (n - 1) // 2, value, np.float16), n, 0.05)


def test_rounded_correlations_of_equal_channels_are_factored() -> None:
    n = 64
    x = np.repeat(inputs(8, 100), 8, axis=1) * RNG(3).chisquare(3, n).astype(np.float32)
    correlations, _ = moments(x)
    for damping in (0, 0.01):
        found = dense(factor_of(correlations, n, damping))
        expected = full_matrix(correlations, n) + damping * np.eye(n)
        assert np.abs(found @ found.T - expected).max() < 0.01


# ---- codes ----


@pytest.mark.parametrize("name", BLOCKS)
def test_channels_without_correlations_give_the_bytes_of_the_importance(name: str) -> None:
    n = 512
    w, importance = weights(21, n), RNG(2).chisquare(2, n).astype(np.float32)
    factor = factor_of(np.zeros(n * (n - 1) // 2, np.float16), n, 0)
    for sweeps in (0, 2):
        found, losses = encoded(w, name, factor, importance, sweeps)
        plain = encode(w, name, importance, gain="least-squares")
        assert found.tobytes() == plain.tobytes()
        expected = losses_of(w, plain, name, np.diag(importance.astype(np.float64)))
        assert np.allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_no_sweep_raises_the_error_of_the_outputs(name: str) -> None:
    n = 512
    w = weights(37, n)
    correlations, importance = moments(inputs(n, 2000))
    h = matrix_of(correlations, importance, 0.05)
    factor = factor_of(correlations, n, 0.05)
    plain = losses_of(w, encode(w, name, importance), name, h)
    before: Any = np.inf
    for sweeps in range(4):
        found, losses = encoded(w, name, factor, importance, sweeps)
        assert np.allclose(losses, losses_of(w, found, name, h), rtol=2e-3)
        assert (losses <= before * (1 + 1e-5)).all()
        before = losses
    assert before.sum() < 0.8 * plain.sum()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "IQ4_NL", "Q2_K", "IQ2_XXS"])
def test_blocks_take_back_earlier_errors_by_the_schur_complement(name: str) -> None:
    """The target of a block, and what its errors cost if later columns can take any back."""
    qtype = ALL[name]
    size = qtype.block_size
    n = 3 * size
    w = weights(9, n)
    correlations, importance = moments(inputs(n, 2000))
    found, _ = encoded(w, name, factor_of(correlations, n, 0.02), importance)
    h = matrix_of(correlations, importance, 0.02)
    e = w - decode(found, name, n).astype(np.float64)
    blocks = found.reshape(len(w), 3, qtype.type_size)
    for at in range(0, n, size):
        own = slice(at, at + size)
        later = np.linalg.inv(h[at:, at:])
        target = w[:, own] + e[:, :at] @ (h[:at, at:] @ later[:, :size])
        plain = encode(target, name, importance[own], gain="least-squares")
        assert (plain[:, SCALES[name]] == blocks[:, at // size, SCALES[name]]).all()
        left = target - w[:, own] + e[:, own]
        schur = np.linalg.inv(later[:size, :size])
        nearest = target - decode(plain, name, size)
        assert (cost(left, schur) <= cost(nearest, schur) * (1 + 1e-5)).all()
        assert cost(left, schur).sum() < 0.97 * cost(nearest, schur).sum()


SCALES = {
    "Q8_0": [0, 1],
    "Q4_0": [0, 1],
    "IQ4_NL": [0, 1],
    "Q2_K": [*range(16), 80, 81, 82, 83],
    "IQ2_XXS": [0, 1],
}
"""The bytes of a block that hold scales only."""


def cost(e: F64, h: F64) -> F64:
    return ((e @ h) * e).sum(axis=1)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_K", "IQ4_XS", "MXFP4"])
def test_many_sweeps_end_where_no_single_code_can_be_improved(name: str) -> None:
    n = 256
    w = weights(9, n)
    correlations, importance = moments(inputs(n, 600))
    h = matrix_of(correlations, importance, 0.05)
    found, _ = encoded(w, name, factor_of(correlations, n, 0.05), importance, 30)
    e = w - decode(found, name, n).astype(np.float64)
    slope = e @ h
    levels = levels_of(found, name)
    y = w - e
    for i in range(n):
        best = y[:, i] + slope[:, i] / h[i, i]
        nearest = np.abs(levels[:, i] - best[:, None]).min(axis=1)
        assert np.allclose(np.abs(y[:, i] - best), nearest, atol=2e-4 * 0.02)


def levels_of(blocks: U8, name: str) -> F64:
    """The numbers that each weight of a scalar type can be, [n_rows, n, 16 or 32]."""
    codes = {"Q4_0": (2, 18), "Q5_K": (16, 176), "IQ4_XS": (8, 136), "MXFP4": (1, 17)}[name]
    rows = blocks.reshape(len(blocks), -1, ALL[name].type_size)
    n = rows.shape[1] * ALL[name].block_size
    found: list[Any] = []
    for code in range(16):
        for high in (0, 255) if name == "Q5_K" else (0,):
            each = rows.copy()
            each[:, :, slice(*codes)] = code * 17
            if name == "Q5_K":
                each[:, :, 16:48] = high
            found.append(decode(each.reshape(len(blocks), -1), name, n))
    return np.stack(found, axis=-1).astype(np.float64)


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    n = 256
    w = weights(70, n)
    correlations, importance = moments(inputs(n, 600))
    factor = factor_of(correlations, n, 0.05)
    whole, losses = encoded(w, name, factor, importance, 1)
    for first, last in ((0, 1), (1, 18), (18, 70)):
        part, its = encoded(np.ascontiguousarray(w[first:last]), name, factor, importance, 1)
        assert part.tobytes() == whole[first:last].tobytes()
        assert its.tobytes() == losses[first:last].tobytes()


@pytest.mark.parametrize("name", BLOCKS)
def test_every_build_of_the_core_gives_the_same_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 512
    w = weights(17, n)
    correlations, importance = moments(inputs(n, 600))
    found: set[bytes] = set()
    for isa in isas():
        monkeypatch.setenv("DYNQUANT_ISA", isa)
        factor = factor_of(correlations, n, 0.05)
        blocks, losses = encoded(w, name, factor, importance, 1, Search())
        found.add(b"".join(a.tobytes() for a in (factor.upper, factor.schur, blocks, losses)))
    assert len(found) == 1


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("kind", ["dead channels", "one token", "all zero", "one row", "huge"])
def test_degenerate_inputs_and_weights_are_encoded(name: str, kind: str) -> None:
    n = 256
    w, x = weights(1 if kind == "one row" else 5, n), inputs(n, 600)
    if kind == "dead channels":
        x[:, ::3] = 0
    elif kind == "one token":
        x = x[:1]
    elif kind == "all zero":
        x[:] = 0
    elif kind == "huge":
        w, x = w * np.float32(1e34), x * np.float32(1e-12)
    correlations, importance = moments(x)
    for damping in (0, 0.05):
        factor = factor_of(correlations, n, damping)
        found, losses = encoded(w, name, factor, importance, 1)
        assert np.isfinite(losses).all()
        assert np.isfinite(decode(found, name, n)).all()


def test_the_first_row_that_is_not_finite_is_named() -> None:
    n = 64
    w = weights(90, n)
    w[71, 50] = np.nan
    correlations, importance = moments(inputs(n, 600))
    with pytest.raises(NotFiniteError) as e:
        encoded(w, "Q4_0", factor_of(correlations, n, 0.05), importance)
    assert e.value.row == 71


# ---- the error of outputs ----


@pytest.mark.parametrize("name", ["IQ2_XXS", "Q4_K", "Q4_0"])
def test_output_errors_are_those_of_the_sums(name: str) -> None:
    n = 512
    w, sums = weights(21, n), RNG(5).standard_normal((256, n)).astype(np.float32)
    blocks = encode(w, name, np.ones(n))
    e = w.astype(np.float64) - decode(blocks, name, n)
    expected = np.square(e @ sums.T).sum(axis=1)
    found = output_errors(w.view(np.uint8), ALL["F32"], n, ALL[name], blocks, panels_of(sums))
    assert np.allclose(found, expected, rtol=1e-5)
