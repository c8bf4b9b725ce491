"""Buffers at odd addresses give the same bytes and weights as aligned ones.

The oracle for undefined behaviour is scripts/check_sanitizers.sh, which runs these tests.
"""

from __future__ import annotations

import numpy as np
import pytest
from subsets import FAST_TYPES, slow_except

from dynquant.arrays import U8
from dynquant.quants import ALL, QuantType, decode, encode, isas
from dynquant.quants.codec import encode_floats, error_sums
from dynquant.quants.table import FLOATS

X = np.random.default_rng(1).laplace(0, 0.02, (5, 512)).astype(np.float32)
W = np.random.default_rng(2).lognormal(0, 1, 512).astype(np.float32)


@pytest.fixture(params=isas(), autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DYNQUANT_ISA", request.param)
    return request.param


def at_odd_address(a: np.ndarray) -> np.ndarray:
    """Return a copy of an array at an odd address."""
    room = np.empty(a.nbytes + 2, np.uint8)
    start = 1 if room.ctypes.data % 2 == 0 else 0
    copy = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    assert copy.ctypes.data % 2 == 1
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("stored", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("name", slow_except(FAST_TYPES, ALL))
def test_rows_and_blocks_at_odd_addresses_encode_to_the_same_bytes(
    name: str, stored: QuantType
) -> None:
    qtype, rows = ALL[name], encode(X, stored)
    shape = (len(X), qtype.row_size(X.shape[1]))
    expected: U8 = np.empty(shape, np.uint8)
    encode_floats(rows, stored, X.shape[1], qtype, expected, W)
    found = at_odd_address(np.empty(shape, np.uint8))
    odd_rows, odd_w = at_odd_address(rows), at_odd_address(W)
    encode_floats(odd_rows, stored, X.shape[1], qtype, found, odd_w)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", slow_except(FAST_TYPES, ALL))
def test_gains_at_odd_addresses_give_the_same_bytes(name: str) -> None:
    search = {"weighting": "magnitude", "gain": "half"}
    expected = encode(X, name, W, **search)
    found = encode(at_odd_address(X), name, at_odd_address(W), **search)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", slow_except(FAST_TYPES, ALL))
def test_blocks_at_odd_addresses_decode_to_the_same_weights(name: str) -> None:
    blocks = encode(X, name)
    expected = decode(blocks, name, X.shape[1])
    np.testing.assert_array_equal(decode(at_odd_address(blocks), name, X.shape[1]), expected)


@pytest.mark.parametrize("name", slow_except(FAST_TYPES, ALL))
def test_error_sums_of_blocks_at_odd_addresses_are_the_same(name: str) -> None:
    stored, qtype = ALL["Q8_0"], ALL[name]
    rows, blocks = encode(X, stored), encode(X, qtype, W)
    expected = error_sums(rows, stored, X.shape[1], qtype, blocks, W)
    odd = [at_odd_address(a) for a in (rows, blocks, W)]
    assert error_sums(odd[0], stored, X.shape[1], qtype, odd[1], odd[2]) == expected
