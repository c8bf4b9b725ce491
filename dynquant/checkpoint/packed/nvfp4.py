"""NVFP4 of checkpoints, read as ggml's blocks; only the order of the nibbles differs.

Each matrix has one more factor for all its scales. ggml's blocks do not contain it: llama.cpp reads
it from a separate tensor, `NAME.scale`, and multiplies the products of the matrix by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynquant.arrays import U8
from dynquant.checkpoint.packed.weight import read_bytes, widened
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import CheckpointError
from dynquant.quants.table import ALL, QuantType
from dynquant.tensors import n_rows

_BLOCK, _GROUP = 64, 16
_NOT_POSITIVE = 0x7F
"""E4M3's NaN; codes above it are negative."""


@dataclass(frozen=True)
class Nvfp4:
    """Rows of codes, two to a byte with the first in the low half, and their E4M3 scales.

    codes: n_rows * n_per_row / 2 bytes; scales: a byte for 16 weights
    """

    codes: StoredTensor
    scales: StoredTensor
    shape: tuple[int, ...]

    @property
    def stored(self) -> QuantType:
        """NVFP4."""
        return ALL["NVFP4"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with the blocks of rows start..stop.

        Raises CheckpointError for a scale that is negative or not a number.
        """
        rows = n_rows(self.shape)
        codes = read_bytes(self.codes, rows, start, stop).reshape(-1, _GROUP // 2)
        scales = read_bytes(self.scales, rows, start, stop)
        if scales.size and scales.max() >= _NOT_POSITIVE:
            raise CheckpointError(
                f"{self.scales.path}: {self.scales.name} has a scale that is negative or not a"
                " number; choose another type for the tensor, or download the checkpoint again"
            )
        pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(-1, _GROUP)
        halves = pairs[:, : _GROUP // 2] | pairs[:, _GROUP // 2 :] << 4
        blocks = into.reshape(-1, ALL["NVFP4"].type_size)
        blocks[:, :4] = scales.reshape(-1, _BLOCK // _GROUP)
        blocks[:, 4:] = halves.reshape(-1, _BLOCK // 2)


@dataclass(frozen=True)
class FactorOfAll:
    """The factor of all scales of each matrix, F32 [n].

    divides: the stored numbers are reciprocals of the factors
    """

    tensor: StoredTensor
    shape: tuple[int, ...]
    divides: bool

    @property
    def stored(self) -> QuantType:
        """F32."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with all factors, which are one row."""
        found = widened(read_bytes(self.tensor, 1, start, stop), self.tensor.dtype, self.shape[0])
        factors = 1 / found if self.divides else found
        into[:] = factors.astype("<f4").view(np.uint8).reshape(-1)


def is_kept_as_blocks(shape: tuple[int, ...], scale: StoredTensor) -> bool:
    """Whether a weight's codes and scales form whole blocks."""
    fits = shape[-1] % _BLOCK == 0 and scale.shape == (*shape[:-1], shape[-1] // _GROUP)
    return fits and scale.dtype == "F8_E4M3"
