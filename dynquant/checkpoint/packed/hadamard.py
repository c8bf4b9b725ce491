"""Products of weights and matrices, the same to the last bit on every machine.

Rows for a Hadamard matrix are first rounded to integers so small that no sum of a row can exceed
2^52: exact in float64 whatever the order in which a BLAS adds, and with fused multiplication too.
The integers keep at least 52 - log2(size) - 1 bits of the largest weight of a row, more than
float32 has. Products with other matrices are sums of float64 in one fixed order, which are slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dynquant.arrays import F32, U8
from dynquant.checkpoint.packed.weight import read_bytes, widened
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import CheckpointError
from dynquant.part_cache import Parts
from dynquant.tensors import TensorSource, f32_bytes, row_bytes
from dynquant.transforms import InF32, read_weights

F64 = npt.NDArray[np.float64]
Signs = npt.NDArray[np.int8]

_DENSE = 128
"""Up to this size one product with the whole matrix is the fastest."""
_PANEL = 512
"""Columns of a large matrix that are converted to float64 at a time."""
_SLAB = 256
"""Columns of a weight that are rotated at a time."""


def sylvester(size: int, first: int = 0, last: int | None = None) -> Signs:
    """Return rows first..last of Sylvester's Hadamard matrix; the size is a power of two."""
    both = np.arange(first, size if last is None else last)[:, None] & np.arange(size)
    for shift in (16, 8, 4, 2, 1):
        both ^= both >> shift
    return (1 - 2 * (both & 1)).astype(np.int8)


@dataclass(frozen=True, eq=False)
class Hadamard:
    """A Hadamard matrix S of signs with reordered rows and columns; the rotation is S / sqrt(size).

    stored: its numbers, [size, size], all of one magnitude; None for Sylvester's matrix
    order:  row and column i of S are row and column order[i] of the stored matrix
    """

    size: int
    stored: StoredTensor | None
    order: StoredTensor | None
    _signs: Parts[Signs | None] = field(
        default_factory=lambda: Parts["Signs | None"](), init=False, repr=False
    )
    _orders: Parts[npt.NDArray[np.int64]] = field(
        default_factory=lambda: Parts[npt.NDArray[np.int64]](), init=False, repr=False
    )

    def rotated(self, x: F32, *, flip: bool) -> F32:
        """Return x S / sqrt(size), float32 [n, size]; with flip, x S^T / sqrt(size).

        Raises CheckpointError if the stored matrix is not a Hadamard matrix.
        """
        n_bits = (self.size - 1).bit_length()
        with np.errstate(invalid="ignore", over="ignore"):
            largest = np.abs(x).max(axis=1, initial=0)
            shift = (52 - n_bits - np.frexp(largest)[1].astype(np.int32))[:, None]
            q = np.rint(np.ldexp(x.astype(np.float64), shift))
            total = self._product(self._ordered(q, inverse=False), flip)
            y = np.ldexp(self._ordered(total, inverse=True), -shift)
            return (y / np.sqrt(np.float64(self.size))).astype(np.float32)

    def _ordered(self, x: F64, *, inverse: bool) -> F64:
        """Return x with its columns in the order of the stored matrix, or back."""
        if self.order is None:
            return x
        with self._orders.use(0, 8 * self.size, self._read_order) as order:
            if inverse:
                return x[:, order]
            found = np.empty_like(x)
            found[:, order] = x
            return found

    def _product(self, q: F64, flip: bool) -> F64:
        if self.stored is None:
            return _fast(q)
        with self._signs.use(0, self.size**2, self._read_signs) as signs:
            if signs is None:
                return _fast(q)
            if flip:
                signs = signs.T
            y = np.empty_like(q)
            for first in range(0, self.size, _PANEL):
                columns = signs[:, first : first + _PANEL].astype(np.float64)
                y[:, first : first + _PANEL] = q @ columns
            return y

    def _read_order(self, _: int) -> npt.NDArray[np.int64]:
        assert self.order is not None
        raw = read_bytes(self.order, 1, 0, 1)[0]
        order = raw.view("<i8" if self.order.dtype == "I64" else "<i4").astype(np.int64)
        if not np.array_equal(np.sort(order), np.arange(self.size)):
            raise CheckpointError(
                f"{self.order.path}: {self.order.name} is not a permutation; the file is damaged,"
                " download it again"
            )
        return order

    def _read_signs(self, _: int) -> Signs | None:
        """Return the signs; None for Sylvester's matrix, which has a faster product."""
        tensor = self.stored
        assert tensor is not None
        signs = np.empty((self.size, self.size), np.int8)
        is_sylvester = self.size & (self.size - 1) == 0
        magnitude = np.float32(0)
        for first in range(0, self.size, _PANEL):
            last = min(first + _PANEL, self.size)
            rows = widened(read_bytes(tensor, self.size, first, last), tensor.dtype, self.size)
            magnitude = abs(rows[0, 0]) if first == 0 else magnitude
            # 1 as compressed-tensors stores it now; its first releases stored 1 / sqrt(size).
            scaled = abs(float(magnitude) * self.size**0.5 - 1) < 2**-7
            if not (np.abs(rows) == magnitude).all() or not (magnitude == 1 or scaled):
                raise CheckpointError(
                    f"{tensor.path}: {tensor.name} is not a Hadamard matrix, so the effect of its"
                    " rotation is not known; use the checkpoint it was made from"
                )
            signs[first:last] = np.where(rows < 0, -1, 1)
            if is_sylvester:
                is_sylvester = np.array_equal(signs[first:last], sylvester(self.size, first, last))
        return None if is_sylvester else signs


@dataclass(frozen=True, eq=False)
class Matrix:
    """A stored matrix of any numbers, [size, size]."""

    size: int
    stored: StoredTensor
    _numbers: Parts[F64] = field(default_factory=lambda: Parts[F64](), init=False, repr=False)

    @property
    def order(self) -> None:
        """None: rows and columns are in the order of the file."""
        return None

    def rotated(self, x: F32, *, flip: bool) -> F32:
        """Return x M, float32 [n, size]; with flip, x M^T."""
        with self._numbers.use(0, 8 * self.size**2, self._read) as matrix:
            rows = matrix.T if flip else matrix
            wide = x.astype(np.float64)
            y = np.zeros_like(wide)
            with np.errstate(invalid="ignore", over="ignore"):
                for i in range(self.size):
                    y += wide[:, i : i + 1] * rows[i]
                return y.astype(np.float32)

    def _read(self, _: int) -> F64:
        tensor = self.stored
        rows = read_bytes(tensor, self.size, 0, self.size)
        return widened(rows, tensor.dtype, self.size).astype(np.float64)


def _fast(q: F64) -> F64:
    """Return q H for Sylvester's H, which is the Kronecker product of two smaller ones."""
    n, size = q.shape
    inner = min(size, _DENSE)
    outer = size // inner
    y = q.reshape(n * outer, inner) @ sylvester(inner).astype(np.float64)
    if outer > 1:
        y = np.matmul(sylvester(outer).astype(np.float64), y.reshape(n, outer, inner))
    return y.reshape(n, size)


@dataclass(frozen=True)
class RotatedRows(InF32):
    """Rows multiplied block by block by a matrix; with flip, by its transpose."""

    source: TensorSource
    block: Hadamard | Matrix
    flip: bool

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        x = read_weights(self.source, start, stop).reshape(-1, self.block.size)
        into[:] = f32_bytes(self.block.rotated(x, flip=self.flip))


@dataclass(frozen=True, eq=False)
class RotatedColumns(InF32):
    """Columns of a matrix multiplied block by block, as RotatedRows of its transpose.

    Rows of a block are computed together and cached.
    """

    source: TensorSource
    block: Hadamard | Matrix
    flip: bool
    _blocks: Parts[U8] = field(default_factory=lambda: Parts[U8](), init=False, repr=False)

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop; reads the whole blocks that hold them."""
        n, size = self.block.size, row_bytes(self)
        rows = into.reshape(stop - start, size)
        for index in range(start // n, -(-stop // n)):
            first, last = max(start, index * n), min(stop, (index + 1) * n)
            with self._blocks.use(index, n * size, self._block) as block:
                rows[first - start : last - start] = block[first - index * n : last - index * n]

    def _block(self, index: int) -> U8:
        n = self.block.size
        x = read_weights(self.source, index * n, (index + 1) * n)
        y = np.empty_like(x)
        for first in range(0, x.shape[1], _SLAB):
            columns = np.ascontiguousarray(x[:, first : first + _SLAB].T)
            y[:, first : first + _SLAB] = self.block.rotated(columns, flip=self.flip).T
        return f32_bytes(y).reshape(n, -1)
