"""The header of one safetensors file: names, dtypes, shapes and offsets; all are checked.

A file consists of 8 bytes of header length (u64, little-endian), the header (a JSON object), and
the data:

    {"__metadata__": {...}, "NAME": {"dtype": "BF16", "shape": [r, c], "data_offsets": [a, b]}, ...}

Offsets count from the first byte after the header. The format requires that the tensors cover the
data without holes or overlaps (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

from dynquant.errors import CheckpointError
from dynquant.quants.table import FLOATS, KEPT
from dynquant.stored_files import StoredFile, stored_file
from dynquant.tensors import Doubles, ShardFile, Stored, TensorSource
from dynquant.untrusted import RepeatedKeyError, parse_json, shown, unique

MAX_HEADER = 100_000_000
"""Bytes of a header; the limit of the safetensors library (MAX_HEADER_SIZE in tensor.rs)."""

MAX_NAME = 1024
"""Characters of a tensor's name; the longest names of models in use have about a hundred."""

MAX_DIMS = 8
"""Dimensions of a shape; weights have at most four."""

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one number of each dtype of safetensors."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is stored in a safetensors file.

    dtype:  as the file names it ("BF16", "F8_E4M3"); shape: numpy order
    offset: bytes from the start of the file
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: ShardFile
    offset: int
    n_bytes: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    def source(self) -> TensorSource:
        """Return the rows in their stored type, but F64 rounded to F32.

        Raises CheckpointError if GGUF has no such type.
        """
        rows = self.as_stored()
        return Doubles(rows) if self.dtype == "F64" else rows

    def as_stored(self) -> Stored:
        """Return the rows in their stored type; raise CheckpointError if GGUF has no such type."""
        stored = (FLOATS | KEPT).get(self.dtype)
        if stored is None:
            raise CheckpointError(
                f"{self.path}: {self.name} is stored as {self.dtype}, which is not supported for"
                f" weights; supported: {', '.join(FLOATS)}, F64"
            )
        return Stored(self.file, self.offset, self.shape, stored)


def read_header(path: Path | StoredFile) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, in the order of their data.

    Raises CheckpointError with the file's path and all problems of its tensors.
    """
    stored = stored_file(path)
    path = stored.path
    try:
        with stored.open() as file:
            size = file.seek(0, 2)
            file.seek(0)
            header, start = _header(path, file, size)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e
    shard = ShardFile(stored)
    tensors: list[StoredTensor] = []
    problems: list[str] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor = _misnamed(name) or _entry(shard, name, entry, start)
        if isinstance(tensor, str):
            problems.append(f"{path}: {shown(name)}: {tensor}")
        else:
            tensors.append(tensor)
    CheckpointError.raise_any(problems)
    tensors.sort(key=lambda t: (t.offset, t.n_bytes))
    CheckpointError.raise_any(f"{path}: {p}" for p in _places(tensors, start, size))
    return {t.name: t for t in tensors}


def _header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Return the header and the offset of the data."""
    first = file.read(8)
    if first == b"version ":
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the file; run `git lfs pull`")
    if len(first) < 8:
        raise CheckpointError(f"{path}: is {size} bytes long, too short for a safetensors file")
    length = int.from_bytes(first, "little")
    if not 2 <= length <= MAX_HEADER:
        raise CheckpointError(
            f"{path}: bytes 0 to 7 give a header of {length} bytes; not a safetensors file"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path}: ends inside its header, {8 + length - size} bytes too early; copy it again"
        )
    try:
        header = parse_json(file.read(length).decode(), unique)
    except RepeatedKeyError as e:
        raise CheckpointError(f"{path}: header: {e}") from e
    except ValueError as e:
        raise CheckpointError(f"{path}: the header is not JSON: {e}") from e
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    return cast("dict[str, Any]", header), 8 + length


def _misnamed(name: str) -> str | None:
    if len(name) > MAX_NAME:
        return f"the name has {len(name)} characters; at most {MAX_NAME} are supported"
    return None if name.isprintable() else "not a printable name"


def _entry(shard: ShardFile, name: str, entry: object, start: int) -> StoredTensor | str:
    """Return one tensor, or the problem of its entry."""
    fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
    dtype = fields.get("dtype")
    shape = _counts(fields.get("shape"))
    offsets = _counts(fields.get("data_offsets"))
    if not isinstance(dtype, str):
        return "has no dtype"
    if shape is None:
        return f"shape {shown(fields.get('shape'))} is not a list of sizes"
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets {shown(fields.get('data_offsets'))} are not a start and an end"
    n_bytes = offsets[1] - offsets[0]
    bits = _BITS.get(dtype)
    if bits is not None and prod(shape) * bits != 8 * n_bytes:
        return (
            f"{n_bytes} bytes at data_offsets {list(offsets)}, but {dtype} {list(shape)} is"
            f" {-(-prod(shape) * bits // 8)} bytes"
        )
    return StoredTensor(name, dtype, shape, shard, start + offsets[0], n_bytes)


def _counts(value: object) -> tuple[int, ...] | None:
    """Return a list of sizes or offsets; None if it is not one, or exceeds all real files."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    if len(items) > MAX_DIMS:
        return None
    counts = tuple(i for i in items if type(i) is int and 0 <= i < 1 << 63)
    return counts if len(counts) == len(items) else None


def _places(tensors: list[StoredTensor], start: int, size: int) -> Iterator[str]:
    """Yield holes and overlaps of the tensors in the data, bytes start..size; sorted tensors."""
    end, before = start, ""
    for tensor in tensors:
        if tensor.offset < end:
            yield f"{before} and {tensor.name} overlap by {end - tensor.offset} bytes"
        elif tensor.offset > end:
            after = f" after {before}" if before else ""
            yield f"{tensor.offset - end} bytes at {end}{after} belong to no tensor"
        if tensor.offset + tensor.n_bytes >= end:
            end, before = tensor.offset + tensor.n_bytes, tensor.name
    if end > size:
        yield f"truncated: {end - size} bytes of {end} are missing; download or copy it again"
    elif end < size:
        yield f"{size - end} bytes at {end}, after the last tensor, belong to no tensor"
