"""Ternary weights of BitNet, w = d * q with q in -1..1 and one d for a matrix.

    X U8 [n / 4, n_per_row], X_scale [1]    packed: bits 2 k, 2 k + 1 of row r of X are the codes
                                            q + 1 of row n / 4 * k + r of the weight
    X as floats                             rounded while the model runs (quantization_mode online)

Of packed weights, d is the scale if linear_class is autobitlinear, and else its reciprocal. Of
floats, d is the mean magnitude of the matrix, and q is the integer nearest to w / d. Source:
integrations/bitnet.py of transformers.

GGUF's ternary types have a scale in F16 for each block, which few d fit. So the blocks that a file
keeps have scales of one, and d is the separate factor `NAME.scale` in F32: nothing is rounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dynquant.arrays import F32, U8
from dynquant.checkpoint.packed.settings import Settings
from dynquant.checkpoint.packed.weight import Found, float_rows, missing_parts, read_bytes, widened
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import CheckpointError
from dynquant.part_cache import Parts
from dynquant.quants.codec import decode
from dynquant.quants.encoder import encode
from dynquant.quants.table import ALL, FLOATS, QuantType
from dynquant.tensors import Kept

I8 = NDArray[np.int8]

_BLOCKS = ("TQ2_0", "TQ1_0", "Q2_0")
"""Types whose blocks hold ternary codes; a file keeps the first one whose blocks fit the rows."""

_LEAST = 1e-5
"""transformers' least mean magnitude."""

_PIECE = 1 << 22
"""Bytes of floats that are read at a time for their mean."""

_LINEAR = re.compile(r"(?!.*\b(embed_tokens|lm_head)\.).*\.weight")
"""transformers leaves out embeddings, which are no linear modules, and the output matrix."""


class Ternary(Protocol):
    """A matrix of ternary weights."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in numpy, slowest dimension first."""
        ...

    def codes(self, start: int, stop: int) -> I8:
        """Return the codes -1..1 of rows start..stop, int8 [stop - start, n_per_row]."""
        ...

    def factor(self) -> np.float32:
        """Return d; raise CheckpointError if it is not a positive number."""
        ...


@dataclass(frozen=True)
class PackedCodes:
    """Codes of two bits with their scale; divides: d is the reciprocal of the scale."""

    packed: StoredTensor
    scale: StoredTensor
    divides: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Four rows for each packed one."""
        n, n_per_row = self.packed.shape
        return (4 * n, n_per_row)

    def codes(self, start: int, stop: int) -> I8:
        """Return the codes of rows; raise CheckpointError for one that is not ternary."""
        n = self.packed.shape[0]
        found = np.empty((stop - start, self.shape[1]), np.int8)
        for k in range(start // n, -(-stop // n)):
            first, last = max(start, k * n), min(stop, (k + 1) * n)
            rows = read_bytes(self.packed, n, first - k * n, last - k * n) >> 2 * k & 3
            found[first - start : last - start] = rows.view(np.int8) - 1
        if found.size and found.max() > 1:
            raise CheckpointError(
                f"{self.packed.path}: {self.packed.name} has a code that is not ternary; the file"
                " is damaged, download it again"
            )
        return found

    def factor(self) -> np.float32:
        """Return d, rounded once."""
        scale = widened(read_bytes(self.scale, 1, 0, 1), self.scale.dtype, 1)[0, 0]
        if not (scale > 0 and np.isfinite(scale) and np.isfinite(np.float32(1) / scale)):
            raise CheckpointError(
                f"{self.scale.path}: {self.scale.name} is {scale}, which is not a positive number;"
                " the file is damaged, download it again"
            )
        return np.float32(1) / scale if self.divides else np.float32(scale)


@dataclass(frozen=True, eq=False)
class RoundedCodes:
    """Floats that the model rounds while it runs; their mean is computed at the first read."""

    floats: StoredTensor
    _mean: Parts[float] = field(default_factory=lambda: Parts[float](), init=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the floats."""
        return self.floats.shape

    def _read(self, start: int, stop: int) -> F32:
        rows = read_bytes(self.floats, self.shape[0], start, stop)
        return widened(rows, self.floats.dtype, self.shape[1])

    def _reciprocal(self) -> np.float32:
        def sum_of(_: int) -> float:
            step = max(1, _PIECE // (4 * self.shape[1]))
            starts = range(0, self.shape[0], step)
            pieces = (self._read(at, min(at + step, self.shape[0])) for at in starts)
            return float(sum(np.abs(x).sum(dtype=np.float64) for x in pieces))

        with self._mean.use(0, 8, sum_of) as total:
            if not np.isfinite(total):
                raise CheckpointError(
                    f"{self.floats.path}: {self.floats.name} contains a NaN or an infinity; the"
                    " checkpoint is damaged or its training overflowed, use another copy of it"
                )
            mean = max(np.float32(total / prod(self.shape)), np.float32(_LEAST))
            return np.float32(1) / mean

    def codes(self, start: int, stop: int) -> I8:
        """Return the codes of rows, rounded as transformers rounds them: half to even."""
        scaled = self._read(start, stop) * self._reciprocal()
        return np.clip(np.rint(scaled), -1, 1).astype(np.int8)

    def factor(self) -> np.float32:
        """Return d in the precision of the floats, in which transformers computes."""
        d = np.float32(1) / self._reciprocal()
        stored = FLOATS[self.floats.dtype]
        return decode(encode(d.reshape(1, 1), stored), stored, 1)[0, 0]


@dataclass(frozen=True)
class TernaryRows:
    """The weights as F32."""

    of: Ternary

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return self.of.shape

    @property
    def stored(self) -> QuantType:
        """F32, as decoded."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        with float_rows(into, self.shape[-1]) as x:
            np.multiply(self.of.codes(start, stop), self.of.factor(), out=x, dtype=np.float32)


@dataclass(frozen=True)
class TernaryBlocks:
    """The codes as blocks of a ternary type whose scales are one."""

    of: Ternary
    stored: QuantType

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return self.of.shape

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        codes = self.of.codes(start, stop).astype(np.float32)
        into[:] = encode(codes, self.stored).reshape(-1)


@dataclass(frozen=True)
class TernaryFactor:
    """The factor of a matrix, F32 [1]."""

    of: Ternary

    @property
    def shape(self) -> tuple[int, ...]:
        """One number."""
        return (1,)

    @property
    def stored(self) -> QuantType:
        """F32."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with the factor."""
        into[:] = np.full(stop - start, self.of.factor(), "<f4").view(np.uint8)


def find_ternary(tensors: Mapping[str, StoredTensor], settings: Settings, found: Found) -> None:
    """Find the ternary weights of a checkpoint, packed or to be rounded."""
    if is_online(settings.values):
        floats = [t for n, t in tensors.items() if _LINEAR.fullmatch(n) and t.dtype in FLOATS]
        for tensor in floats:
            if len(tensor.shape) == 2 and not _is_excluded(tensor.name, settings.values):
                _add(found, tensor.name, RoundedCodes(tensor), (tensor.name,))
        return
    divides = str(settings.values.get("linear_class", "bitlinear")).lower() != "autobitlinear"
    for name, tensor in tensors.items():
        if tensor.dtype != "U8":
            continue
        if missing := missing_parts(["_scale"], tensors, name):
            found.fault(name, missing)
            continue
        scale = tensors[name + "_scale"]
        if len(tensor.shape) != 2 or 0 in tensor.shape or prod(scale.shape) != 1:
            text = (
                f"is packed as {list(tensor.shape)} with scales {list(scale.shape)}; BitNet has one"
                " scale for a matrix; download it again"
            )
            found.fault(name, text, (name, scale.name))
        elif scale.dtype not in FLOATS:
            text = f"has a scale stored as {scale.dtype}, which is not supported; use {_FLOATS}"
            found.fault(name, text, (name, scale.name))
        else:
            _add(found, name, PackedCodes(tensor, scale, divides), (name, scale.name))


_FLOATS = ", ".join(FLOATS)


def is_online(values: Mapping[str, Any]) -> bool:
    """Whether the stored floats are rounded while the model runs."""
    return str(values.get("quantization_mode", "offline")).lower() == "online"


def _is_excluded(name: str, values: Mapping[str, Any]) -> bool:
    """Whether modules_to_not_convert names a weight: its module, or a part of its path."""
    listed = values.get("modules_to_not_convert")
    parts = cast("list[object]", listed) if isinstance(listed, list) else []
    path = f".{name.removesuffix('.weight')}."
    return any(f".{part}." in path for part in parts)


def _add(found: Found, name: str, codes: Ternary, parts: tuple[str, ...]) -> None:
    n_per_row = codes.shape[-1]
    blocks = [TernaryBlocks(codes, ALL[t]) for t in _BLOCKS if n_per_row % ALL[t].block_size == 0]
    kept = Kept(blocks[0], TernaryFactor(codes), tuple(blocks[1:])) if blocks else None
    found.add(name, TernaryRows(codes), parts, kept)
