"""Rows computed from those of other tensors, in F32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.errors import CheckpointError
from dynquant.part_cache import Parts
from dynquant.quants import ALL, QuantType, decode
from dynquant.quants.table import KEPT
from dynquant.tensors import TensorSource, f32_bytes, row_bytes
from dynquant.transforms.moved import SLAB_BYTES, Reshaped


class InF32:
    """Rows computed from those of a source of the same shape, in F32."""

    source: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the source."""
        return self.source.shape

    @property
    def stored(self) -> QuantType:
        """F32, as computed."""
        return ALL["F32"]


@dataclass(frozen=True)
class Elementwise(InF32):
    """A function of each weight, computed in F32."""

    source: TensorSource
    function: Callable[[F32], F32]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        values = self.function(read_weights(self.source, start, stop))
        into[:] = f32_bytes(values)


@dataclass(frozen=True)
class ScaledInputs(InF32):
    """A matrix times a number by which the checkpoint's model multiplies its inputs instead."""

    source: TensorSource
    factor: float

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        into[:] = f32_bytes(read_weights(self.source, start, stop) * np.float32(self.factor))


@dataclass(frozen=True, eq=False)
class UnitColumns(InF32):
    """A matrix with each column divided by its norm plus a small number, computed in F32.

    The norms are computed once, in one pass over the matrix, and are shared by the threads that
    read rows.
    """

    source: TensorSource
    epsilon: float
    _norms: Parts[F32] = field(default_factory=lambda: Parts[F32](), init=False, repr=False)

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        with self._norms.use(0, 4 * self.shape[-1], self._computed) as norms:
            values = read_weights(self.source, start, stop) / norms
        into[:] = f32_bytes(values)

    def _computed(self, _: int) -> F32:
        """Return the divisors of the columns, float32 [n_per_row]."""
        # In float64 and in one order, so that every machine rounds to the same float32.
        total = np.zeros(self.shape[-1], np.float64)
        step = max(1, SLAB_BYTES // (4 * self.shape[-1]))
        for start in range(0, self.shape[0], step):
            rows = read_weights(self.source, start, min(start + step, self.shape[0]))
            for row in rows.astype(np.float64):
                total += row * row
        return np.sqrt(total).astype(np.float32) + np.float32(self.epsilon)


@dataclass(frozen=True)
class Product:
    """The product of two tensors with the same number of weights, in F32."""

    first: TensorSource
    second: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first."""
        return self.first.shape

    @property
    def stored(self) -> QuantType:
        """F32, as computed."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        values = read_weights(self.first, start, stop) * read_weights(
            Reshaped(self.second, self.first.shape), start, stop
        )
        into[:] = f32_bytes(values)


@dataclass(frozen=True, eq=False)
class ScaledRows(InF32):
    """Each row times a number, in F32.

    factors: float32 [rows]
    """

    source: TensorSource
    factors: F32

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        values = read_weights(self.source, start, stop) * self.factors[start:stop, None]
        into[:] = f32_bytes(values)


@dataclass(frozen=True)
class AsI32:
    """Integers of 64 bits as integers of 32 bits; none may be larger."""

    source: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the source."""
        return self.source.shape

    @property
    def stored(self) -> QuantType:
        """I32."""
        return KEPT["I32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop; raise CheckpointError for a number out of range."""
        rows = np.empty((stop - start) * row_bytes(self.source), np.uint8)
        self.source.read(start, stop, rows)
        found = rows.view("<i8")
        if found.size and not (found.min() >= -(2**31) and found.max() < 2**31):
            raise CheckpointError(
                f"rows {start} to {stop - 1} of a table have numbers beyond 32 bits; download the"
                " checkpoint again"
            )
        into[:] = found.astype("<i4").view(np.uint8)


def read_weights(source: TensorSource, start: int, stop: int) -> F32:
    """Return rows start..stop of a source, float32 [stop - start, n_per_row]."""
    rows = np.empty((stop - start, row_bytes(source)), np.uint8)
    source.read(start, stop, rows.reshape(-1))
    return decode(rows, source.stored, prod(source.shape[-1:]))
