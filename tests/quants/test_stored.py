"""Stored codes and scales become weights: every code, on every ISA, within the buffers.

The oracles are the definitions of the formats (tests/support/packers.py), and gguf for MXFP4.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from packers import E2M1, E4M3, E5M2, pack_bits, pack_pairs

from dynquant.quants import _core, isas
from dynquant.quants.stored import (
    NUMBERS,
    Scales,
    decode_rows,
    decode_transposed,
    mxfp4_blocks,
    numbers,
)


@pytest.fixture(params=isas(), autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DYNQUANT_ISA", request.param)
    return request.param


EVERY = np.arange(256, dtype=np.uint8).reshape(1, -1)
WITHOUT_NUMBER = {"E4M3": [127, 255], "E5M2": [124, 125, 126, 127, 252, 253, 254, 255]}


@pytest.mark.parametrize(
    ("number", "values"),
    [
        ("E4M3", E4M3),
        ("E5M2", E5M2),
        ("I8", np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)),
        ("BITS", np.arange(256, dtype=np.float32)),
    ],
)
def test_every_code_has_its_value(number: str, values: np.ndarray) -> None:
    assert number in NUMBERS
    found = numbers(EVERY, number, 256)[0]
    special = WITHOUT_NUMBER.get(number, [])
    usual = np.setdiff1d(np.arange(256), special)
    np.testing.assert_array_equal(found[usual].view(np.uint32), values[usual].view(np.uint32))
    assert not np.isfinite(found[special]).any()


def test_exponents_are_powers_of_two_including_subnormal_floats() -> None:
    found = numbers(EVERY, "E8M0", 256)[0]
    np.testing.assert_array_equal(found[:255], np.exp2(np.arange(255.0) - 127).astype(np.float32))
    assert np.isnan(found[255])


def test_first_fp4_code_is_the_low_half_of_a_byte() -> None:
    found = numbers(EVERY, "FP4", 512)[0].reshape(256, 2)
    np.testing.assert_array_equal(found, E2M1[np.stack([EVERY[0] & 15, EVERY[0] >> 4], 1)])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n_per_row", [1, 7, 32, 75])
def test_packed_codes_of_any_width_are_decoded(bits: int, n_per_row: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (5, n_per_row))
    packed = np.ascontiguousarray(pack_bits(codes, bits)).view(np.uint8)
    np.testing.assert_array_equal(numbers(packed, "BITS", n_per_row, bits), codes)
    # A row ends with its last code; no byte after it is read (the sanitizers would detect it).
    short = np.ascontiguousarray(packed[:, : -(-n_per_row * bits // 8)])
    np.testing.assert_array_equal(numbers(short, "BITS", n_per_row, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("n", "n_per_row"), [(1, 32), (16, 64), (37, 96), (64, 33)])
def test_transposed_packed_codes_are_decoded(bits: int, n: int, n_per_row: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (n, n_per_row))
    words = np.ascontiguousarray(pack_bits(codes, bits).T).view(np.uint8)
    found = np.empty((n, n_per_row), np.float32)
    decode_transposed(words, "down", bits, 0, found)
    np.testing.assert_array_equal(found, codes)


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 50), st.integers(1, 90), st.data())
def test_each_weight_has_the_scale_of_its_rectangle(
    n: int, n_per_row: int, rows: int, columns: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, rows - 1))
    rng = np.random.default_rng(n)
    codes = rng.integers(-128, 128, (n, n_per_row)).astype(np.int8)
    shape = (-(-(first + n) // rows), -(-n_per_row // columns))
    scale, zero = rng.standard_normal((2, *shape)).astype(np.float32)
    found = np.empty((n, n_per_row), np.float32)
    decode_rows(
        codes.view(np.uint8),
        "I8",
        n_per_row,
        Scales(scale, zero, rows=rows, columns=columns, first=first),
        found,
    )
    i = (first + np.arange(n))[:, None] // rows
    j = np.arange(n_per_row)[None] // columns
    np.testing.assert_array_equal(found, (codes - zero[i, j]) * scale[i, j])


def test_mxfp4_blocks_have_the_values_of_the_codes() -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 16, (50, 32))
    scales = rng.integers(100, 140, 50).astype(np.uint8)
    blocks = mxfp4_blocks(pack_pairs(codes), scales)
    found = quants.dequantize(blocks, GGMLQuantizationType.MXFP4)
    expected = E2M1[codes] * np.exp2(scales.astype(np.float32) - 127)[:, None]
    np.testing.assert_array_equal(found, expected)


def test_core_refuses_sizes_beyond_a_buffer() -> None:
    codes, scale, weights = (
        np.zeros((4, 8), np.uint8),
        np.ones((2, 2), np.float32),
        np.empty(32, "f4"),
    )
    good = [0, 0, 8, codes, 4, 8, 0, 2, 4, 2, scale, None, 0.0, None, weights]
    _core.decode_rows(*good)
    bad = [
        (0, -1), (0, 99), (1, -1), (1, 6), (2, 0), (2, 9), (4, 3), (4, 0), (5, 9), (5, -1), (6, -1),
        (6, 1), (7, 0), (7, 1), (8, 0), (8, 3), (9, 0), (9, 3), (11, np.ones(3, np.float32)),
        (13, np.array([0] * 7 + [2], np.int32)), (13, np.array([0] * 7 + [-1], np.int32)),
        (13, np.zeros(7, np.int32)), (14, np.empty(31, np.float32)),
        (14, np.empty(129, np.uint8)[1:]), (4, 1 << 60), (5, 1 << 62), (6, 1 << 62), (9, 1 << 62),
    ]  # fmt: skip
    for position, value in bad:
        with pytest.raises(ValueError, match=r"no such ISA|fit together"):
            _core.decode_rows(*good[:position], value, *good[position + 1 :])


def test_core_refuses_transposed_words_that_do_not_fit() -> None:
    words, scale = np.zeros((3, 4 * 16), np.uint8), np.ones((2, 16), np.float32)
    groups, weights = np.zeros(32, np.int32), np.empty((4, 32), np.float32)
    good = [0, 0, 3, words, 16, 12, 4, 32, scale, scale, groups, weights]
    _core.decode_transposed(*good)
    bad = [
        (0, 99), (1, 2), (1, -1), (1, 1), (2, 0), (2, 4), (4, 15), (4, 0), (5, 13), (5, -1), (6, 5),
        (6, 0), (7, 64), (7, 0), (8, scale[:, :15].copy()), (9, None), (9, scale[:1].copy()),
        (10, None), (10, groups + 2), (10, groups - 1), (11, np.empty(127, np.float32)),
        (4, 1 << 62), (5, 1 << 62), (6, 1 << 62), (7, 1 << 62),
    ]  # fmt: skip
    for position, value in bad:
        with pytest.raises(ValueError, match=r"no such ISA|fit together"):
            _core.decode_transposed(*good[:position], value, *good[position + 1 :])
    for codes, scales, blocks in product((15, 16, 32), (0, 1, 3), (16, 17, 35)):
        if (codes, scales, blocks) != (16, 1, 17):
            sizes = (np.zeros(n, np.uint8) for n in (codes, scales, blocks))
            with pytest.raises(ValueError, match="fit together"):
                _core.mxfp4_of_codes(0, *sizes)
