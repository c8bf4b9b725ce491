"""Rows of lazy transforms equal the rows that numpy gives for the whole tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.arrays import F32, I64, U8
from dynquant.quants import ALL, QuantType, decode, encode
from dynquant.tensors import Computed, TensorSource, n_rows, row_bytes
from dynquant.transforms import (
    Elementwise,
    Reshaped,
    Rows,
    ScaledRows,
    Transposed,
    column,
    elements_of_each,
    in_groups,
    interleaved_heads,
    joined,
    moved,
    plus_one,
    reordered,
    rows_of_each,
    stack,
    with_zero_rows,
)


def numbered(*shape: int) -> F32:
    """Weights that all differ."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def both(*shape: int) -> tuple[F32, TensorSource]:
    x = numbered(*shape)
    return x, Computed(x)


def stacked() -> tuple[F32, TensorSource]:
    x = numbered(5, 3, 4)
    return x, stack([Computed(part) for part in x])


def rows_of_several() -> tuple[F32, TensorSource]:
    x = numbered(9, 4)
    return x, joined([Computed(part) for part in np.split(x, [2, 3, 7])])


def rows_and_zeros() -> tuple[F32, TensorSource]:
    x, source = both(5, 4)
    return np.concatenate([x, np.zeros((3, 4), np.float32)]), with_zero_rows(source, 8)


def numbers_and_zeros() -> tuple[F32, TensorSource]:
    x, source = both(5)
    return np.concatenate([x, np.zeros(4, np.float32)]), with_zero_rows(source, 9)


def transposed_matrices() -> tuple[F32, TensorSource]:
    x, source = both(3, 5, 7)
    return x.swapaxes(1, 2), Transposed(source)


def heads() -> tuple[F32, TensorSource]:
    """The k part of DeepSeek's kv_b: the first rows of each head, transposed."""
    x, source = both(4 * 5, 6)
    k = x.reshape(4, 5, 6)[:, :3]
    return k.swapaxes(1, 2), Transposed(rows_of_each(source, 0, 3, each=5))


def halves() -> tuple[F32, TensorSource]:
    x, source = both(3, 8, 4)
    return x[:, 4:], rows_of_each(source, 4, 8)


def every_other() -> tuple[F32, TensorSource]:
    x, source = both(3, 8, 4)
    return x[:, 1::2], rows_of_each(source, 1, 8, 2)


def backwards() -> tuple[F32, TensorSource]:
    x, source = both(40, 3)
    return x[::-1], Rows(source, (40, 3), lambda row: 39 - row)


def far_apart() -> tuple[F32, TensorSource]:
    x, source = both(300, 3)

    def order(row: I64) -> I64:
        return row * 97 % 300

    return x[order(np.arange(300))], Rows(source, (300, 3), order)


def reshaped() -> tuple[F32, TensorSource]:
    x, source = both(6, 4)
    return x.reshape(3, 8), Reshaped(source, (3, 8))


def biases() -> tuple[F32, TensorSource]:
    x, source = both(3, 8)
    return x[:, ::2], elements_of_each(source, 0, 8, 2)


def permuted_bias() -> tuple[F32, TensorSource]:
    x, source = both(8)
    return x[::-1], reordered(source, lambda i: 7 - i)


def offset() -> tuple[F32, TensorSource]:
    x, source = both(5, 4)
    return x + 1, plus_one(source)


def one_column() -> tuple[F32, TensorSource]:
    x, source = both(7)
    return x[:, None], column(source)


def groups() -> tuple[F32, TensorSource]:
    x, source = both(12)
    return x.reshape(3, 4), in_groups(source, 3)


def each_row_scaled() -> tuple[F32, TensorSource]:
    x, source = both(5, 4)
    factors = np.array([1, 0.5, 3, -1, 0.1], np.float32)
    return x * factors[:, None], ScaledRows(source, factors)


def rotary_pairs_of_a_part() -> tuple[F32, TensorSource]:
    """Two heads of six rows, of which four are rotated."""
    x, source = both(12, 3)
    order = [0, 2, 1, 3, 4, 5]
    return x.reshape(2, 6, 3)[:, order].reshape(12, 3), interleaved_heads(source, 2, 4)


CASES: tuple[Callable[[], tuple[F32, TensorSource]], ...] = (
    stacked,
    rows_of_several,
    rows_and_zeros,
    numbers_and_zeros,
    transposed_matrices,
    heads,
    halves,
    every_other,
    backwards,
    far_apart,
    reshaped,
    biases,
    permuted_bias,
    offset,
    one_column,
    groups,
    each_row_scaled,
    rotary_pairs_of_a_part,
)


def read(source: TensorSource, start: int, stop: int) -> F32:
    into = np.full((stop - start) * row_bytes(source), 0xEE, np.uint8)
    source.read(start, stop, into)
    return into.view("<f4").reshape(stop - start, source.shape[-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
@given(data=st.data())
def test_any_rows_equal_those_of_the_whole_tensor(
    case: Callable[[], tuple[F32, TensorSource]], data: st.DataObject
) -> None:
    expected, source = case()
    assert source.shape == expected.shape
    rows = expected.reshape(n_rows(expected.shape), -1)
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    np.testing.assert_array_equal(read(source, start, stop), rows[start:stop])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_rows_can_be_read_into_an_unaligned_buffer(
    case: Callable[[], tuple[F32, TensorSource]],
) -> None:
    expected, source = case()
    into = np.empty(expected.nbytes + 1, np.uint8)[1:]
    source.read(0, n_rows(source.shape), into)
    assert into.tobytes() == expected.astype("<f4").tobytes()


class Counted:
    """A source that counts its reads and the rows read."""

    def __init__(self, x: F32, stored: QuantType = ALL["F32"]) -> None:
        self.shape, self.stored = x.shape, stored
        self._source: Any = Computed(x)
        self.n_read = self.n_calls = 0

    def read(self, start: int, stop: int, into: U8) -> None:
        self.n_read += stop - start
        self.n_calls += 1
        self._source.read(start, stop, into)


def test_a_transposed_tensor_reads_one_matrix_at_a_time_and_each_once() -> None:
    source = Counted(numbered(24, 4, 5))
    tensor = Transposed(source)
    for row in range(5):
        read(tensor, row, row + 1)
    assert source.n_read == 4
    read(tensor, 0, n_rows(tensor.shape))
    assert source.n_read == n_rows(source.shape)


def test_a_matrix_is_transposed_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "SLAB_BYTES", 3 * 5 * 4)
    x = numbered(2, 7, 5)
    source = Counted(x)
    np.testing.assert_array_equal(read(Transposed(source), 0, 10), x.swapaxes(1, 2).reshape(10, 7))
    assert source.n_calls == 6


def test_distant_rows_are_read_one_by_one_and_dense_rows_together() -> None:
    source = Counted(numbered(1000, 3))
    read(Rows(source, (10, 3), lambda row: row * 100), 0, 10)
    assert source.n_read == 10
    read(Rows(source, (10, 3), lambda row: row * 2), 0, 10)
    assert source.n_read == 10 + 19


def test_blocks_are_moved_unchanged() -> None:
    x = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    blocks = encode(x, "Q8_0")

    class Blocks:
        shape, stored = x.shape, ALL["Q8_0"]

        def read(self, start: int, stop: int, into: U8) -> None:
            into[:] = blocks[start:stop].reshape(-1)

    picked = rows_of_each(stack([Blocks(), Blocks()]), 1, 6, 2)
    assert picked.stored is ALL["Q8_0"]
    into = np.empty(6 * row_bytes(picked), np.uint8)
    picked.read(0, 6, into)
    np.testing.assert_array_equal(into.reshape(6, -1), np.concatenate([blocks[1::2]] * 2))


def test_blocks_are_neither_transposed_nor_cut() -> None:
    class Blocks:
        shape, stored = (4, 64), ALL["Q8_0"]

        def read(self, start: int, stop: int, into: U8) -> None: ...

    with pytest.raises(ValueError, match="Q8_0"):
        Transposed(Blocks())
    with pytest.raises(ValueError, match="as"):
        Reshaped(Blocks(), (8, 32))


def test_tensors_of_several_types_stack_as_f32() -> None:
    x = numbered(4, 32)
    half = x.astype(np.float16)

    class Half:
        shape, stored = x.shape, ALL["F16"]

        def read(self, start: int, stop: int, into: U8) -> None:
            into[:] = half[start:stop].view(np.uint8).reshape(-1)

    both_types = stack([Computed(x), Half()])
    assert both_types.stored is ALL["F32"]
    np.testing.assert_array_equal(read(both_types, 0, 8), np.concatenate([x, x]))


def test_a_function_is_computed_in_f32_for_every_stored_type() -> None:
    source = Elementwise(Computed(numbered(2, 3)), np.sqrt)
    np.testing.assert_array_equal(read(source, 0, 2), np.sqrt(numbered(2, 3)))


@pytest.mark.parametrize("name", ALL)
def test_bytes_of_zero_are_weights_of_zero(name: str) -> None:
    """Rows of zeros after the others are zero bytes, whatever the type."""
    qtype = ALL[name]
    blocks = np.zeros((2, qtype.row_size(qtype.block_size)), np.uint8)
    assert not decode(blocks, qtype, qtype.block_size).any()
