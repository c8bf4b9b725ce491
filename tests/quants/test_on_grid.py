"""Weights on the grid of a type are reproduced, at every effort; others are not changed by it.

The oracles are the gguf package and llama.cpp, which decode the blocks, and a search over all
scales of F16.
"""

from __future__ import annotations

import numpy as np
import pytest
from gridded import GRIDS, ROUND, Grid, bf16_rounded, integers
from oracles import gguf_decode

from dynquant.arrays import F32, U8
from dynquant.quants import ALL, encode, isas
from dynquant.quants.on_grid import fit_of
from dynquant.quants.search import EFFORTS, Effort

SHAPE = (12, 512)
IMPORTANCE = np.random.default_rng(1).lognormal(0, 1, SHAPE[1]).astype(np.float32)


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DYNQUANT_ISA", request.param)
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("importance", [None, IMPORTANCE], ids=["equal", "importance"])
@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_weights_on_the_grid_are_reproduced(
    grid: Grid, effort: Effort, importance: F32 | None, isa: str
) -> None:
    x = grid.weights(2, SHAPE)
    decoded = gguf_decode(encode(x, grid.type, importance, effort=effort), ALL[grid.type])
    np.testing.assert_array_equal(ROUND[grid.stored](decoded), x)


@pytest.mark.parametrize("most", range(1, 9))
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("effort", EFFORTS)
def test_any_largest_level_of_q4_0_is_found(most: int, sign: int, effort: Effort) -> None:
    rng = np.random.default_rng(most)
    x = sign * integers(rng, SHAPE, -most, min(most, 7), 32)
    decoded = gguf_decode(encode(bf16_rounded(x), "Q4_0", effort=effort), ALL["Q4_0"])
    np.testing.assert_array_equal(bf16_rounded(decoded), bf16_rounded(x))


def reproducible(x: F32) -> bool:
    """Whether some scale of F16 gives 32 weights of BF16, by trying all that may."""
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    widest = np.abs(x).max()
    scales = scales[(scales > widest / 8.1) & (scales < widest * 1.01)]
    for signed in (scales[:, None], -scales[:, None]):
        codes = np.clip(np.rint(x / signed), -8, 7)
        if (bf16_rounded(codes * signed) == x).all(axis=1).any():
            return True
    return False


@pytest.mark.slow
def test_blocks_that_are_not_reproduced_have_no_scale_in_f16() -> None:
    """Scales of F32 whose products were rounded to BF16: some blocks have no F16 scale."""
    x = bf16_rounded(integers(np.random.default_rng(8), (16, 2048), -7, 7, 32, "F32"))
    decoded = gguf_decode(encode(x, "Q4_0"), ALL["Q4_0"])
    left = (bf16_rounded(decoded) != x).reshape(-1, 32).any(axis=1)
    assert 0 < left.mean() < 0.1
    assert [reproducible(block) for block in x.reshape(-1, 32)] == (~left).tolist()
    assert (np.abs(decoded - x) <= 1.1 * 2.0**-8 * np.abs(x)).all()


@pytest.mark.parametrize("exponent", [-20, -10, 10])
def test_a_grid_far_from_one_is_reproduced_where_f16_holds_its_scales(exponent: int) -> None:
    x = integers(np.random.default_rng(3), SHAPE, -8, 7, 32, "BF16")
    x = np.rint(x / np.abs(x).max() * 7).astype(np.float32) * np.float32(2.0**exponent)
    np.testing.assert_array_equal(gguf_decode(encode(x, "Q4_0"), ALL["Q4_0"]), x)


@pytest.mark.parametrize("factor", [1e-45, 1e-40, 1e-38, 1e-20, 1e10, 1e37])
def test_a_grid_whose_scales_f16_does_not_hold_is_encoded_as_before(factor: float) -> None:
    """Scales far beyond F16 become zeros, or the nearest one where that is better."""
    codes = np.random.default_rng(3).integers(-8, 8, SHAPE).astype(np.float32)
    x = codes * np.float32(factor)
    decoded = gguf_decode(encode(x, "Q4_0"), ALL["Q4_0"])
    assert np.isfinite(decoded).all()
    assert (decoded == 0).all() == (factor != 1e10)


# ---- fit_of --------------------------------------------------------------------------------------


def fit(x: F32, stored: str, qtype: str) -> tuple[int, int | None]:
    rows: U8 = encode(x, stored)
    found = fit_of(rows.reshape(-1), ALL[stored], x.shape[1], ALL[qtype], encode(x, qtype))
    return found.n_rounded, found.beside


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_weights_on_the_grid_have_no_difference(grid: Grid) -> None:
    assert fit(grid.weights(5, SHAPE), grid.stored, grid.type) == (0, None)


def test_a_row_beside_the_grid_is_named() -> None:
    x = GRIDS["MXFP4 as BF16"].weights(5, SHAPE)
    x[7, 100] = bf16_rounded(np.float32([1.3 * np.abs(x[7, 96:128]).max()]))[0]
    n_rounded, beside = fit(x, "BF16", "MXFP4")
    assert n_rounded >= 1
    assert beside == 7


def test_scales_that_f16_does_not_hold_are_roundings() -> None:
    x = integers(np.random.default_rng(8), SHAPE, -8, 7, 32, "F32")
    n_rounded, beside = fit(x, "F32", "Q4_0")
    assert beside is None
    assert n_rounded > 0.5 * np.count_nonzero(x)


@pytest.mark.parametrize("qtype", ["Q1_0", "TQ2_0", "Q2_0", "MXFP4", "Q4_0"])
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_other_weights_are_beside_every_grid(qtype: str, stored: str) -> None:
    x = (0.02 * np.random.default_rng(4).standard_t(4, SHAPE)).astype(np.float32)
    assert fit(ROUND[stored](x), stored, qtype)[1] == 0
