"""MXFP4 of checkpoints, read as ggml's blocks; only the order of the nibbles differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynquant.arrays import U8
from dynquant.checkpoint.packed.weight import Found, missing_parts, read_bytes
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.quants.stored import mxfp4_blocks
from dynquant.quants.table import ALL, QuantType
from dynquant.tensors import n_rows

_BLOCK = 32


@dataclass(frozen=True)
class Mxfp4:
    """Rows of codes, two to a byte with the first in the low half, and their E8M0 scales.

    codes: n_rows * n_per_row / 2 bytes; scales: a byte for 32 weights
    """

    codes: StoredTensor
    scales: StoredTensor
    shape: tuple[int, ...]

    @property
    def stored(self) -> QuantType:
        """MXFP4; a recipe that keeps the type keeps every bit."""
        return ALL["MXFP4"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with the blocks of rows start..stop."""
        rows = n_rows(self.shape)
        codes = read_bytes(self.codes, rows, start, stop)
        scales = read_bytes(self.scales, rows, start, stop)
        blocks = mxfp4_blocks(codes.reshape(-1, _BLOCK // 2), scales.reshape(-1))
        into[:] = blocks.reshape(-1)


def find_mxfp4(tensors: Mapping[str, StoredTensor], found: Found) -> None:
    """Find gpt-oss's `NAME_blocks` U8 [..., n / 32, 16] and `NAME_scales` U8 [..., n / 32]."""
    for name, codes in tensors.items():
        base = name.removesuffix("_blocks")
        if base == name or codes.dtype != "U8":
            continue
        if missing := missing_parts(["_scales"], tensors, base):
            found.fault(name, missing)
            continue
        scales = tensors[base + "_scales"]
        parts = (name, scales.name)
        if codes.shape != (*scales.shape, _BLOCK // 2) or scales.dtype != "U8":
            found.fault(
                base,
                f"has blocks of shape {list(codes.shape)} and scales {scales.dtype}"
                f" {list(scales.shape)}; MXFP4 has 16 bytes of codes and one U8 scale for 32"
                " weights; download it again",
                parts,
            )
            continue
        shape = (*scales.shape[:-1], scales.shape[-1] * _BLOCK)
        found.add(base, Mxfp4(codes, scales, shape), parts)
