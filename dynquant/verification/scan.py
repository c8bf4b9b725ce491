"""Read all bytes of a GGUF once: threads check blocks and padding, hashes are taken in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np
import xxhash

from dynquant.arch.base import TensorName
from dynquant.arrays import U8
from dynquant.checkpoint.gguf import GGUFFile, GGUFTensor
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.quants.codec import decode
from dynquant.quants.table import ALL, KEPT
from dynquant.tensors import ShardFile
from dynquant.verification.ahead import in_order
from dynquant.verification.blocks import BadBlocks, bad_blocks
from dynquant.verification.findings import Fault
from dynquant.verification.structure import padded_end

_CHUNK = 2 << 20
"""Bytes read at a time: few enough to be still in a core's cache when they are hashed."""

_TYPES = ALL | KEPT


@dataclass(frozen=True)
class Stretch:
    """Consecutive bytes of one file, within a tensor or outside all tensors.

    at:      offset from the start of the file
    tensor:  None for bytes outside all tensors
    first:   index of the first block; matrix: index of the expert, or 0
    is_zero: whether the bytes should be zero, as in padding
    """

    file: int
    at: int
    n_bytes: int
    tensor: GGUFTensor | None = None
    first: int = 0
    matrix: int = 0
    is_zero: bool = False


@dataclass
class Scanned:
    """The results of a scan.

    faults: in blocks and in padding
    zero:   tensors with matrices whose weights are all zero, with the indices of those matrices
            (experts, or 0)
    sha256: of each file; xxh64: of each tensor; both empty if no hashes were requested
    """

    faults: list[Fault] = field(default_factory=list[Fault])
    zero: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    sha256: list[str] = field(default_factory=list[str])
    xxh64: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class _Result:
    """What a thread found in a stretch: bad blocks, and the first byte that should be zero."""

    content: U8
    bad: list[BadBlocks]
    not_zero: int | None
    has_weights: bool


def n_matrices(tensor: GGUFTensor) -> int:
    """Return the number of experts in a stack of experts; 1 for other tensors."""
    is_stack = len(tensor.shape) == 3 and TensorName.parse(tensor.name).role.endswith("exps")
    return tensor.shape[0] if is_stack else 1


def scan(
    shards: Shards,
    sizes: list[int],
    *,
    threads: int,
    hashes: bool,
    progress: Callable[[int], None] | None = None,
) -> Scanned:
    """Read and check all bytes of the files once.

    sizes:    bytes of each file
    hashes:   whether to compute hashes
    progress: called with the bytes done

    Uses a few chunks of memory for each thread. Raises CheckpointError if a file cannot be read.
    """
    readers = [ShardFile(file.path) for file in shards.files]
    found = Scanned()
    tally = _Tally(shards, found, hashes=hashes)
    known: set[tuple[str, int]] = set()

    def check(stretch: Stretch) -> _Result:
        content = np.empty(stretch.n_bytes, np.uint8)
        readers[stretch.file].read(stretch.at, content)
        return _checked(stretch, content, known)

    done = 0
    for stretch, result in in_order(_all(shards, sizes), check, threads):
        tally.add(stretch, result)
        done += stretch.n_bytes
        if progress is not None:
            progress(done)
    tally.finish(known)
    return found


def _checked(stretch: Stretch, content: U8, known: set[tuple[str, int]]) -> _Result:
    """Check the bytes of a stretch; known: matrices that have a weight other than zero."""
    tensor = stretch.tensor
    if tensor is None:
        wrong = stretch.is_zero and content.any()
        return _Result(content, [], int((content != 0).argmax()) if wrong else None, False)
    qtype = _TYPES.get(tensor.type_name)
    if qtype is None:
        return _Result(content, [], None, True)
    blocks = content.reshape(-1, qtype.type_size)
    bad = bad_blocks(blocks, qtype)
    key = (tensor.name, stretch.matrix)
    if key not in known and _has_weights(blocks, tensor.type_name):
        known.add(key)
    return _Result(content, bad, None, key in known)


def _has_weights(blocks: U8, type_name: str) -> bool:
    """Whether any weight is not zero; usually one of the first few is not."""
    qtype = ALL.get(type_name)
    if qtype is None:
        return bool(blocks.any())
    step = 16
    start = 0
    while start < len(blocks):
        with np.errstate(all="ignore"):
            if decode(blocks[start : start + step], qtype, qtype.block_size).any():
                return True
        start, step = start + step, 4096
    return False


def _all(shards: Shards, sizes: list[int]) -> Iterator[Stretch]:
    """Yield all bytes of all files, in order."""
    for number, (file, size) in enumerate(zip(shards.files, sizes, strict=True)):
        yield from _between(number, 0, file.table_end, is_zero=False)
        end = file.table_end
        for tensor in sorted(file.tensors, key=lambda t: t.offset):
            start = file.data_offset + tensor.offset
            yield from _between(number, end, start)
            yield from _of_tensor(number, start, tensor)
            end = start + tensor.n_bytes
        whole = min(size, padded_end(file))
        yield from _between(number, end, whole)
        yield from _between(number, whole, size, is_zero=False)


def _between(file: int, start: int, stop: int, *, is_zero: bool = True) -> Iterator[Stretch]:
    for at in range(start, stop, _CHUNK):
        yield Stretch(file, at, min(_CHUNK, stop - at), is_zero=is_zero)


def _of_tensor(file: int, start: int, tensor: GGUFTensor) -> Iterator[Stretch]:
    """Yield stretches of whole blocks; no stretch spans two experts."""
    matrices = n_matrices(tensor)
    each = tensor.n_bytes // matrices
    qtype = _TYPES.get(tensor.type_name)
    size = qtype.type_size if qtype else 1
    step = max(1, _CHUNK // size) * size
    for matrix in range(matrices):
        for at in range(matrix * each, (matrix + 1) * each, step):
            n_bytes = min(step, (matrix + 1) * each - at)
            yield Stretch(file, start + at, n_bytes, tensor, at // size, matrix)


class _Tally:
    """Adds up the results of stretches; stretches are added in order."""

    def __init__(self, shards: Shards, found: Scanned, *, hashes: bool) -> None:
        self._shards = shards
        self._found = found
        self._files = [hashlib.sha256() for _ in shards.files] if hashes else []
        self._tensor = xxhash.xxh64()
        self._bad: dict[tuple[str, str], Fault] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, stretch: Stretch, result: _Result) -> None:
        file = self._shards.files[stretch.file]
        tensor = stretch.tensor
        if self._files:
            self._files[stretch.file].update(result.content.data)
            if tensor is not None:
                self._hash(file, tensor, stretch, result)
        if result.not_zero is not None:
            what = "padding that is not zero; the file is damaged, get another copy"
            self._found.faults.append(Fault(what, file.path, None, stretch.at + result.not_zero))
        for bad in result.bad if tensor else ():
            assert tensor is not None
            self._count(file, tensor, stretch, bad)

    def _hash(self, file: GGUFFile, tensor: GGUFTensor, stretch: Stretch, result: _Result) -> None:
        start = file.data_offset + tensor.offset
        if stretch.at == start:
            self._tensor.reset()
        self._tensor.update(result.content.data)
        if stretch.at + stretch.n_bytes == start + tensor.n_bytes:
            self._found.xxh64[tensor.name] = self._tensor.hexdigest()

    def _count(self, file: GGUFFile, tensor: GGUFTensor, stretch: Stretch, bad: BadBlocks) -> None:
        key = (tensor.name, bad.what)
        self._counts[key] = self._counts.get(key, 0) + bad.count
        if key not in self._bad:
            qtype = _TYPES[tensor.type_name]
            block = stretch.first + bad.first
            row = block * qtype.block_size // (tensor.shape[-1] if tensor.shape else 1)
            self._bad[key] = Fault(
                f"row {row} has {bad.what} ({tensor.type_name})",
                file.path,
                tensor.name,
                stretch.at + bad.first * qtype.type_size,
            )

    def finish(self, known: set[tuple[str, int]]) -> None:
        """Complete the results that concern whole tensors and files."""
        for key, fault in self._bad.items():
            if (n := self._counts[key]) > 1:
                fault = Fault(
                    f"{fault.what}; it is the first of {n:,} such blocks",
                    fault.file,
                    fault.tensor,
                    fault.offset,
                )
            self._found.faults.append(fault)
        for _, tensor in self._shards.tensors():
            if tensor.type_name not in _TYPES or not prod(tensor.shape):
                continue
            zero = [m for m in range(n_matrices(tensor)) if (tensor.name, m) not in known]
            if zero:
                self._found.zero[tensor.name] = zero
        self._found.sha256 = [digest.hexdigest() for digest in self._files]
