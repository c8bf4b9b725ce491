"""Weights whose codes are stored along their rows: FP8, INT8, NVFP4, integers packed into words.

A scale applies to a rectangle of weights, from a single weight to the whole matrix. The shape of
the scales determines the rectangles, for blocks together with config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.checkpoint.packed.weight import Grid, float_rows, read_bytes, read_groups, widened
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import CheckpointError
from dynquant.quants.stored import Number, Scales, decode_rows, decode_transposed
from dynquant.quants.table import ALL, QuantType
from dynquant.tensors import n_rows

WHOLE = 1 << 30
"""Rows or columns of a rectangle that covers the whole matrix: more than any matrix has."""


@dataclass(frozen=True)
class Cells:
    """The rectangles of a weight's matrices that share a scale.

    rows, columns:     the size of one rectangle in weights
    n_rows, n_columns: the number of rectangles in one matrix
    shared:            all matrices use the scales of the first
    """

    rows: int
    columns: int
    n_rows: int
    n_columns: int
    shared: bool = False


def cells_of(
    shape: tuple[int, ...],
    scales: tuple[int, ...],
    blocks: tuple[tuple[int, int], ...],
    *,
    only_blocks: bool = False,
) -> Cells | None:
    """Return the rectangles for a weight and its scales, by their shapes; None if they do not fit.

    blocks: rows and columns of the rectangles in config.json; the last ones may be partial
    """
    *outer, n, n_per_row = shape
    for rows, columns in blocks:
        wanted = (-(-n // rows), -(-n_per_row // columns))
        if scales == (*outer, *wanted):
            return Cells(rows, columns, *wanted)
    if prod(scales) == 1:
        return Cells(WHOLE, WHOLE, 1, 1, shared=True)
    if only_blocks and blocks:
        return None
    if prod(scales) == prod(outer) and set(scales[len(outer) :]) <= {1}:
        return Cells(WHOLE, WHOLE, 1, 1)
    if scales in ((*outer, n), (*outer, n, 1)):
        return Cells(1, WHOLE, n, 1)
    if scales[:-1] == shape[:-1] and n_per_row % scales[-1] == 0:
        return Cells(1, n_per_row // scales[-1], n, scales[-1])
    return None


@dataclass(frozen=True)
class PackedZeros:
    """Zeros packed along their columns: zero i of column j is at bit i * bits of words [:, j].

    Each matrix has [n_rows, n_columns] zeros in I32 [matrices * ceil(n_rows * bits / 32), columns].
    """

    tensor: StoredTensor
    bits: int
    n_rows: int
    n_columns: int
    n_matrices: int

    def read(self, matrix: int, first: int, last: int) -> F32:
        """Return rows first..last of a matrix, float32 [last - first, n_columns]."""
        per_matrix = -(-self.n_rows * self.bits // 32)
        begin = first // 32 * 32  # 32 codes of any width begin with a word
        low, high = begin * self.bits // 32, -(-last * self.bits // 32)
        at = matrix * per_matrix
        words = read_bytes(self.tensor, self.n_matrices * per_matrix, at + low, at + high)
        columns = np.empty((self.n_columns, last - begin), np.float32)
        decode_transposed(words, "down", self.bits, 0, columns)
        return np.ascontiguousarray(columns.T[first - begin :])


@dataclass(frozen=True)
class Factor:
    """A number that multiplies or divides all scales of a matrix.

    n: 1, or the number of matrices
    """

    tensor: StoredTensor
    n: int
    divides: bool

    def apply(self, scale: F32, matrix: int) -> F32:
        """Return the effective scales."""
        at = matrix if self.n > 1 else 0
        of_all = widened(read_bytes(self.tensor, self.n, at, at + 1), self.tensor.dtype, 1)[0, 0]
        return scale / of_all if self.divides else scale * of_all


@dataclass(frozen=True)
class CodedRows:
    """Rows of numbers with scales, (number - zero) * scale, as F32; each weight is rounded once.

    codes:  the numbers, packed without gaps in each row; bits: the width of BITS
    zero:   one for each scale; None if all weights have zero_of_all
    groups: the number of the scale of each column, if a permutation defines it
    claim:  a tensor that states the shape
    """

    codes: StoredTensor
    shape: tuple[int, ...]
    number: Number
    cells: Cells
    scale: Grid
    zero: Grid | PackedZeros | None = None
    zero_of_all: float = 0.0
    factor: Factor | None = None
    groups: StoredTensor | None = None
    claim: StoredTensor | None = None
    bits: int = 8

    @property
    def stored(self) -> QuantType:
        """F32, as decoded."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        n = self.shape[-2]
        with float_rows(into, self.shape[-1]) as x:
            for matrix in range(start // n, -(-stop // n)):
                first, last = max(start, matrix * n), min(stop, (matrix + 1) * n)
                self._read(matrix, first - matrix * n, last - matrix * n, x[first - start :])

    def _read(self, matrix: int, first: int, last: int, x: F32) -> None:
        """Fill the first rows of x with rows first..last of a matrix."""
        if self.claim and first == 0:
            check_claim(self.claim, self.shape)
        cells, at = self.cells, matrix * self.shape[-2]
        codes = read_bytes(self.codes, n_rows(self.shape), at + first, at + last)
        low, high = first // cells.rows, -(-last // cells.rows)
        scale = self._of(self.scale, matrix, low, high)
        if self.factor:
            scale = self.factor.apply(scale, matrix)
        scales = Scales(
            scale,
            None if self.zero is None else self._of(self.zero, matrix, low, high),
            self.zero_of_all,
            cells.rows,
            cells.columns,
            first - low * cells.rows,
            read_groups(self.groups, cells.n_columns) if self.groups else None,
        )
        decode_rows(codes, self.number, self.shape[-1], scales, x[: last - first], self.bits)

    def _of(self, numbers: Grid | PackedZeros, matrix: int, low: int, high: int) -> F32:
        matrix = 0 if self.cells.shared else matrix
        if isinstance(numbers, PackedZeros):
            return numbers.read(matrix, low, high)
        at = matrix * self.cells.n_rows
        return numbers.read(at + low, at + high)


def claimed_shape(tensor: StoredTensor) -> tuple[int, ...]:
    """Return the shape that a tensor contains as its values."""
    found = np.empty(tensor.n_bytes, np.uint8)
    tensor.file.read(tensor.offset, found)
    return tuple(int(n) for n in found.view("<i8" if tensor.dtype == "I64" else "<i4"))


def check_claim(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError if a tensor states a shape other than the given one."""
    claimed = claimed_shape(tensor)
    if claimed != shape[-len(claimed) :]:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} is {list(claimed)}, but the packed weight has shape"
            f" {list(shape)}; the file is damaged, download it again"
        )
