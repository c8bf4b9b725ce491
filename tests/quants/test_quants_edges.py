"""Encoders reach the optimum where it can be computed, and accept degenerate rows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from oracles import (
    degenerate_rows,
    ggml_accepts,
    gguf_decode,
    log_normal_importance,
    matrices,
)
from subsets import FAST_TYPES, slow_except

from dynquant.arrays import F32
from dynquant.quants import (
    ALL,
    encode,
)
from dynquant.quants.search import EFFORTS, Effort

TYPES = list(ALL)
BLOCK_TYPES = [name for name, qtype in ALL.items() if not qtype.is_float]
MATRICES = dict(matrices())


def optimum(x: F32, w: F32, levels: list[float], scales: F32) -> F32:
    """Return the least weighted error of each block over all scales, with nearest levels.

    x: [n_blocks, block_size]; w likewise; scales: [n_blocks or 1, n_scales]
    """
    least = np.full(len(x), np.inf)
    midpoints = np.add(levels[:-1], levels[1:]) / 2
    for s in scales.T.astype(np.float64)[:, :, None]:
        decoded = np.asarray(levels)[np.searchsorted(midpoints, x / s)] * s
        least = np.minimum(least, (w * (x - decoded) ** 2).sum(axis=1))
    return least


def solved(x: F32, w: F32, levels: list[float], thresholds: F32) -> F32:
    """Return the least-squares scale for the levels of each threshold; they include all optima."""
    midpoints = np.add(levels[:-1], levels[1:]) / 2
    scales = []
    for s in thresholds.T.astype(np.float64)[:, :, None]:
        q = np.asarray(levels)[np.searchsorted(midpoints, x / s)]
        scales.append((w * x * q).sum(axis=1) / np.maximum((w * q * q).sum(axis=1), 1e-30))
    return np.where(np.array(scales) == 0, 1, scales).T


def around_breakpoints(x: F32, breakpoints: list[float], signs: list[int]) -> F32:
    """Return scales just below and above each scale at which a weight changes its level."""
    return np.concatenate(
        [
            sign * np.abs(x) / b * f
            for b, f, sign in product(breakpoints, (1 - 1e-4, 1 + 1e-4), signs)
        ],
        axis=1,
    )


E2M1 = [-6.0, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
UE4M3 = np.array([*range(1, 8), *[(8 + k % 8) * 2.0 ** (k // 8 - 1) for k in range(8, 127)]]) / 512


@pytest.mark.slow
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q2_0", "MXFP4", "NVFP4", "Q1_0"])
def test_best_effort_reaches_the_optimum_of_the_format(name: str, matrix: str) -> None:
    """The oracle tries every relevant scale in float64 with the levels of the decoder."""
    qtype, all_x = ALL[name], MATRICES[matrix]
    all_w = log_normal_importance(all_x.shape[1])
    group = 16 if name == "NVFP4" else qtype.block_size
    x = all_x.reshape(-1, group)[:96]
    w = np.tile(all_w, len(all_x)).reshape(-1, group)[:96]
    match name:
        case "MXFP4":
            levels, scales = E2M1, 2.0 ** np.arange(-40, 10)[None]
        case "NVFP4":
            levels, scales = E2M1, UE4M3[None]
        case "Q1_0":
            levels, scales = [-1.0, 1.0], ((w * abs(x)).sum(axis=1) / w.sum(axis=1))[:, None]
        case "Q2_0":
            levels = [-1.0, 0, 1, 2]
            scales = solved(x, w, levels, around_breakpoints(x, [0.5, 1.5], [1, -1]))
        case _:
            levels = [-1.0, 0, 1]
            scales = solved(x, w, levels, around_breakpoints(x, [0.5], [1]))
    decoded = gguf_decode(encode(all_x, name, all_w, effort="best"), qtype).reshape(-1, group)[:96]
    ours = (w * (x.astype(np.float64) - decoded) ** 2).sum(axis=1)
    assert np.all(ours <= optimum(x, w, levels, scales) * (1 + 1e-5))


def degenerate_importances() -> list[tuple[str, F32 | None]]:
    rng = np.random.default_rng(4)
    some_zero = np.where(np.arange(512) % 3 == 0, 0, rng.random(512))
    zero_groups = np.where(np.arange(512) // 32 % 3 == 0, 0, 1)
    one = np.zeros(512)
    one[100] = 1
    table = {
        "zero": np.zeros(512),
        "some zero": some_zero,
        "zero for whole groups": zero_groups,
        "one weight alone": one,
        "tiny": np.full(512, 1e-38),
        "huge": np.full(512, 1e38),
        "wide": np.logspace(-38, 38, 512),
    }
    return [("none", None), *((name, w.astype(np.float32)) for name, w in table.items())]


@pytest.mark.parametrize(
    "x", [x for _, x in degenerate_rows()], ids=[n for n, _ in degenerate_rows()]
)
@pytest.mark.parametrize("effort", slow_except(["normal"], EFFORTS))
@pytest.mark.parametrize("name", slow_except(FAST_TYPES, BLOCK_TYPES))
def test_degenerate_rows_are_finite_and_no_worse_than_zeros(
    name: str, effort: Effort, x: F32
) -> None:
    exact = x.astype(np.float64)
    for importance, w in degenerate_importances():
        decoded = gguf_decode(encode(x, name, w, effort=effort), ALL[name]).astype(np.float64)
        assert np.isfinite(decoded).all(), importance
        weights = np.ones(512) if w is None else w.astype(np.float64)
        zeros = (weights * exact**2).sum()
        assert (weights * (exact - decoded) ** 2).sum() <= zeros * (1 + 1e-6), importance


@pytest.mark.oracle
@pytest.mark.parametrize("name", slow_except(FAST_TYPES, TYPES))
def test_llama_cpp_accepts_the_blocks_of_any_rows(name: str) -> None:
    pytest.importorskip("xllamacpp")
    rows = [*MATRICES.items(), *degenerate_rows()]
    importances = [w for _, w in degenerate_importances()]
    refused = [
        f"{row} with importance {i}"
        for (row, x), (i, w) in product(rows, enumerate(importances))
        if (w is None or x.shape[1] == len(w)) and not ggml_accepts(encode(x, name, w), ALL[name])
    ]
    assert not refused
