"""One column range of many rows encodes to the blocks of a copy of these columns."""

from __future__ import annotations

import numpy as np
import pytest
from subsets import FAST_TYPES, slow_except

from dynquant.arrays import F32, U8
from dynquant.quants import ALL, _core, encode, isas
from dynquant.quants.search import EFFORTS, Effort

N_PER_ROW = 1100
TYPES = [name for name, _, _ in _core.TYPES]


@pytest.fixture(params=isas(), autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DYNQUANT_ISA", request.param)
    return request.param


def rows(n_rows: int) -> F32:
    """Return rows of many magnitudes, some with zeros; any sixteen rows in sequence differ."""
    rng = np.random.default_rng(n_rows)
    x = rng.standard_t(4, (n_rows, N_PER_ROW)) * np.exp(rng.uniform(-60, 60, (n_rows, 1)))
    x[2::7, : N_PER_ROW // 2] = 0
    x[5::11] = 0
    return x.astype(np.float32)


def encode_columns(
    isa: str, x: F32, name: str, first: int, n_columns: int, w: F32 | None, effort: Effort
) -> U8:
    blocks = np.empty((len(x), ALL[name].row_size(n_columns)), np.uint8)
    bad_row = _core.encode_columns(
        _core.ISAS.index(isa),
        TYPES.index(name),
        x,
        x.shape[1],
        first,
        n_columns,
        w,
        EFFORTS.index(effort),
        blocks,
    )
    assert bad_row == -1
    return blocks


@pytest.mark.slow
@pytest.mark.parametrize("effort", slow_except(["normal"], EFFORTS))
@pytest.mark.parametrize("with_importance", [True, False])
@pytest.mark.parametrize("name", slow_except(FAST_TYPES, ALL))
def test_columns_encode_to_the_blocks_of_their_copy(
    isa: str, name: str, with_importance: bool, effort: Effort
) -> None:
    importance = np.random.default_rng(3).lognormal(0, 1, N_PER_ROW).astype(np.float32)
    for n_rows, first, n_columns in ((1, 0, 256), (16, 256, 256), (37, 43, 768), (3, 588, 512)):
        x, columns = rows(n_rows), slice(first, first + n_columns)
        w = importance[columns].copy() if with_importance else None
        found = encode_columns(isa, x, name, first, n_columns, w, effort)
        copy = np.ascontiguousarray(x[:, columns])
        expected = encode(copy, name, w, effort=effort, gain="least-squares")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["F32", "Q4_K"])
def test_first_row_with_a_nonfinite_weight_in_the_columns_is_returned(isa: str, name: str) -> None:
    x = rows(20)
    x[4, 700], x[9, 300], x[11, 300] = np.nan, np.inf, np.nan
    blocks = np.empty((20, ALL[name].row_size(256)), np.uint8)
    position = TYPES.index(name)
    found = _core.encode_columns(
        _core.ISAS.index(isa), position, x, N_PER_ROW, 256, 256, None, 0, blocks
    )
    assert found == 9


def test_columns_beyond_a_buffer_are_refused(isa: str) -> None:
    x, w, blocks = np.ones((4, 512), np.float32), np.ones(256, np.float32), np.empty(576, np.uint8)
    good = [_core.ISAS.index(isa), TYPES.index("Q4_K"), x, 512, 256, 256, w, 1, blocks]
    _core.encode_columns(*good)
    bad = [
        (0, 99), (1, -1), (1, 99), (2, x[:3].copy()), (2, x.view(np.uint8).reshape(-1)[4:]),
        (3, 511), (3, 0), (3, -512), (3, 1 << 62), (4, 257), (4, -1), (4, 1 << 62), (5, 512),
        (5, 255), (5, 0), (5, -256), (5, 1 << 62), (6, w[:255].copy()), (7, -1), (7, 3),
        (8, blocks[:575]), (8, np.empty(577, np.uint8)),
    ]  # fmt: skip
    for position, value in bad:
        with pytest.raises(ValueError, match=r"no such|fit together"):
            _core.encode_columns(*good[:position], value, *good[position + 1 :])
