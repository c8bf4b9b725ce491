"""Imatrix files in both of llama.cpp's formats, written without dynquant."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from dynquant.arrays import F32

Counted = tuple[F32, Sequence[float]]


def legacy_entry(name: bytes, n_calls: int, values: Sequence[float]) -> bytes:
    head = struct.pack("<i", len(name)) + name + struct.pack("<ii", n_calls, len(values))
    return head + struct.pack(f"<{len(values)}f", *values)


def legacy_bytes(
    *entries: bytes, n_chunks: int | None = None, dataset: bytes | None = None
) -> bytes:
    content = struct.pack("<i", len(entries)) + b"".join(entries)
    if n_chunks is not None:
        content += struct.pack("<i", n_chunks)
    if dataset is not None:
        content += struct.pack("<i", len(dataset)) + dataset
    return content


def write_legacy(path: Path, means: Mapping[str, F32], n_calls: int = 3) -> Path:
    """Write means of any shape, experts one after the other, with the complete tail."""
    entries = [legacy_entry(n.encode(), n_calls, m.ravel() * n_calls) for n, m in means.items()]
    path.write_bytes(legacy_bytes(*entries, n_chunks=7, dataset=b"books.txt"))
    return path


KEYS: dict[str, Any] = {
    "general.type": "imatrix",
    "imatrix.datasets": ["books.txt", "more.txt"],
    "imatrix.chunk_count": 7,
    "imatrix.chunk_size": 512,
}


def write_tensors(path: Path, tensors: Mapping[str, Any], **changes: Any) -> Path:
    """Write a GGUF of any tensors with the keys of an imatrix; a change to None removes a key."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.kv_data[0].clear()
    for name, value in (KEYS | {k.replace("_", ".", 1): v for k, v in changes.items()}).items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for name, x in tensors.items():
        writer.add_tensor(name, np.asarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_counted(path: Path, entries: Mapping[str, Counted], **changes: Any) -> Path:
    """Write sums [n_rows, n_per_row] and their counts in the form of llama-imatrix."""
    tensors: dict[str, Any] = {}
    for name, (sums, counts) in entries.items():
        tensors[f"{name}.counts"] = np.array(counts, np.float32).reshape(-1, 1)
        tensors[f"{name}.in_sum2"] = sums
    return write_tensors(path, tensors, **changes)
