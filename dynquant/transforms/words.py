"""The words for transforms in the declarations of families."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dynquant.arrays import I64
from dynquant.quants.table import KEPT
from dynquant.tensors import TensorSource
from dynquant.transforms.computed import AsI32, Elementwise
from dynquant.transforms.moved import Columns, Joined, Reshaped, Rows, Stack, Transposed, ZeroRows


def stack(parts: Sequence[TensorSource]) -> TensorSource:
    """Return tensors of one shape as one tensor; F32 if their types differ."""
    return Stack(_of_one_type(parts))


def joined(parts: Sequence[TensorSource]) -> TensorSource:
    """Return matrices of one width as one matrix, rows after rows; F32 if their types differ."""
    return Joined(_of_one_type(parts))


def _of_one_type(parts: Sequence[TensorSource]) -> tuple[TensorSource, ...]:
    if len({part.stored for part in parts}) > 1:
        return tuple(map(as_f32, parts))
    return tuple(parts)


def interleaved_heads(
    source: TensorSource, n_head: int, n_rotated: int | None = None
) -> TensorSource:
    """Return Q or K in the order of interleaved rotary pairs, from the half-split order of HF.

    Hugging Face stores the first halves of a head's rotary pairs before the second halves.
    llama.cpp's Llama graph needs them pair by pair: row 2j+k of a head is row k*(head_dim/2)+j of
    the stored head. A bias is one row; its elements are permuted in the same way.

    n_rotated: rotated rows of a head, which are its first; the others stay. None for all
    """
    head_dim = source.shape[0] // n_head
    rotated = head_dim if n_rotated is None else n_rotated

    def order(row: I64) -> I64:
        head, within = np.divmod(row, head_dim)
        pair, half = np.divmod(within, 2)
        moved = np.where(within < rotated, half * (rotated // 2) + pair, within)
        return head * head_dim + moved

    return reordered(source, order)


def half_split_heads(source: TensorSource, n_head: int, n_rotated: int) -> TensorSource:
    """Return Q or K in the half-split order, from that of interleaved rotary pairs.

    n_rotated: rotated rows of a head, which are its first; the others stay
    """
    n_per_head = source.shape[0] // n_head

    def order(rows: I64) -> I64:
        head, row = np.divmod(rows, n_per_head)
        half = n_rotated // 2
        pair = np.where(row < half, 2 * row, 2 * (row - half) + 1)
        return head * n_per_head + np.where(row < n_rotated, pair, row)

    return reordered(source, order)


def reordered(source: TensorSource, order: Callable[[I64], I64]) -> TensorSource:
    """Return a matrix with its rows, or a vector with its elements, in another order."""
    if len(source.shape) > 1:
        return Rows(source, source.shape, order)
    elements = Reshaped(source, (*source.shape, 1))
    return Reshaped(Rows(elements, elements.shape, order), source.shape)


def rows_between(source: TensorSource, start: int, stop: int) -> TensorSource:
    """Return rows start..stop of a matrix, or elements start..stop of a vector."""
    if len(source.shape) > 1:
        return rows_of_each(source, start, stop)
    return elements_of_each(source, start, stop)


def rows_of_each(
    source: TensorSource, start: int, stop: int, step: int = 1, each: int | None = None
) -> TensorSource:
    """Return rows start..stop of each matrix of a tensor, with a step.

    Example: the gate and up projections of experts that are stored as one tensor.

    each: splits a plain matrix: every `each` rows become one matrix of the result (the heads of a
          projection); None takes the matrices from the shape
    """
    *outer, rows = source.shape[:-1] if each is None else (source.shape[0] // each, each)
    kept = len(range(start, stop, step))
    n_per_row = source.shape[-1]

    def order(row: I64) -> I64:
        matrix, within = np.divmod(row, kept)
        return matrix * rows + start + within * step

    return Rows(source, (*outer, kept, n_per_row), order)


def first_half_of_each(source: TensorSource) -> TensorSource:
    """Return the first half of the rows of each matrix: the gates of experts, before their ups."""
    return rows_of_each(source, 0, source.shape[-2] // 2)


def second_half_of_each(source: TensorSource) -> TensorSource:
    """Return the second half of the rows of each matrix."""
    return rows_of_each(source, source.shape[-2] // 2, source.shape[-2])


def elements_of_each(source: TensorSource, start: int, stop: int, step: int = 1) -> TensorSource:
    """Return elements start..stop of each row, with a step: `rows_of_each` for biases."""
    columns = Reshaped(source, (*source.shape, 1))
    picked = rows_of_each(columns, start, stop, step)
    return Reshaped(picked, picked.shape[:-1])


def tiled_heads(source: TensorSource, n_groups: int, each: int, first: int = 0) -> TensorSource:
    """Return rows of heads in tiled order: the first head of each group, then the second of each.

    The source has the heads of a group together. A vector's elements are reordered like rows.

    each: rows of a head; first: rows before the heads, which stay
    """
    n_in_group = (source.shape[0] - first) // (n_groups * each)

    def order(rows: I64) -> I64:
        head, within = np.divmod(rows - first, each)
        number, group = np.divmod(head, n_groups)
        moved = first + (group * n_in_group + number) * each + within
        return np.where(rows < first, rows, moved)

    return reordered(source, order)


def tiled_columns(source: TensorSource, n_groups: int, each: int) -> TensorSource:
    """Return the columns of heads in tiled order, as `tiled_heads` does for rows.

    F32 if a block of the source spans two heads.
    """
    n_heads = source.shape[-1] // each
    number, group = np.divmod(np.arange(n_heads, dtype=np.int64), n_groups)
    whole = each % source.stored.block_size == 0
    pieces = source if whole else as_f32(source)
    return Columns(pieces, group * (n_heads // n_groups) + number, each)


def transposed(source: TensorSource) -> TensorSource:
    """Return a tensor with each matrix transposed; F32 if its rows are blocks."""
    whole = source if source.stored.is_float else as_f32(source)
    return Transposed(whole)


def as_f32(source: TensorSource) -> TensorSource:
    """Return a tensor decoded to F32."""
    return Elementwise(source, lambda x: x)


def plus_one(source: TensorSource) -> TensorSource:
    """Return the factors of a norm; the checkpoint stores them minus one."""
    return Elementwise(source, lambda x: x + np.float32(1))


def as_i32(source: TensorSource) -> TensorSource:
    """Return a table of integers with 32 bits each."""
    return AsI32(source) if source.stored == KEPT["I64"] else source


def squeezed(source: TensorSource, dimension: int) -> TensorSource:
    """Return a tensor without one of its dimensions, which must be 1."""
    shape = source.shape
    if shape[dimension] != 1:
        raise ValueError(f"dimension {dimension} of {shape} is not 1")
    return Reshaped(source, (*shape[:dimension], *shape[dimension + 1 :]))


def depthwise_kernels(source: TensorSource) -> TensorSource:
    """Return the kernels [channels, 1, kernel] of a depthwise convolution as a matrix."""
    return squeezed(source, dimension=1)


def with_zero_rows(source: TensorSource, n: int) -> TensorSource:
    """Return a matrix or vector of n rows or numbers: zeros after those of the source."""
    if len(source.shape) > 1:
        return ZeroRows(source, n)
    return Reshaped(ZeroRows(column(source), n), (n,))


def column(source: TensorSource) -> TensorSource:
    """Return a vector as a matrix of one column."""
    return Reshaped(source, (*source.shape, 1))


def in_groups(source: TensorSource, n: int) -> TensorSource:
    """Return a vector as a matrix with a row for each of n groups; F32 if stored in blocks."""
    whole = source if source.stored.is_float else as_f32(source)
    return Reshaped(whole, (n, source.shape[0] // n))


def scaled(source: TensorSource, factor: float) -> TensorSource:
    """Return a tensor times a number, which llama.cpp's graph does not apply."""
    return Elementwise(source, lambda x: x * np.float32(factor))


def parts_of_groups(
    source: TensorSource, n_groups: int, parts: Sequence[tuple[int, int]]
) -> TensorSource:
    """Return some rows of each group of rows: the first part of all groups, then the next part.

    A vector's elements are taken like rows.

    parts: start and end of each part within a group, in the order of the result
    """
    each = source.shape[0] // n_groups
    groups = np.arange(n_groups, dtype=np.int64)[:, None] * each
    rows = np.concatenate([(groups + np.arange(*part)).reshape(-1) for part in parts])

    def order(row: I64) -> I64:
        return rows[row]

    if len(source.shape) == 1:
        elements = Reshaped(source, (*source.shape, 1))
        return Reshaped(Rows(elements, (len(rows), 1), order), (len(rows),))
    return Rows(source, (len(rows), *source.shape[1:]), order)


def negated_exp(source: TensorSource) -> TensorSource:
    """Return -exp(x): the decay rate of a state; the checkpoint stores its logarithm."""
    # In float64, so that every machine rounds to the same float32.
    return Elementwise(source, lambda x: -np.exp(x.astype(np.float64)).astype(np.float32))


def softplus(source: TensorSource) -> TensorSource:
    """Return log(1 + exp(x)): a positive factor; the checkpoint stores x."""
    # In float64, so that every machine rounds to the same float32.
    return Elementwise(
        source, lambda x: np.logaddexp(np.float64(0), x.astype(np.float64)).astype(np.float32)
    )


def padded(source: TensorSource, n_rows: int) -> TensorSource:
    """Return a matrix with copies of its first row after the last one, up to this many rows."""
    stored = source.shape[0]

    def order(row: I64) -> I64:
        return np.where(row < stored, row, 0)

    return Rows(source, (n_rows, *source.shape[1:]), order)
