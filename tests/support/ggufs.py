"""GGUF files written and read with the gguf package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize

SCALARS = {
    GGUFValueType.UINT8: 255,
    GGUFValueType.INT8: -128,
    GGUFValueType.UINT16: 65535,
    GGUFValueType.INT16: -32768,
    GGUFValueType.UINT32: 2**32 - 1,
    GGUFValueType.INT32: -(2**31),
    GGUFValueType.FLOAT32: 0.5,
    GGUFValueType.BOOL: True,
    GGUFValueType.STRING: "Ġhé\n",
    GGUFValueType.UINT64: 2**64 - 1,
    GGUFValueType.INT64: -(2**63),
    GGUFValueType.FLOAT64: 1e-300,
}
"""A value of each type that a key can have."""


def add(writer: GGUFWriter, name: str, x: np.ndarray, type_name: str = "F32") -> None:
    """Add a tensor: floats in any type that the gguf package encodes, integers unchanged."""
    if x.dtype.kind == "i" or x.dtype == np.float64:
        writer.add_tensor(name, x)
        return
    ggml_type = GGMLQuantizationType[type_name]
    content = x if type_name == "F32" else quantize(x, ggml_type)
    writer.add_tensor(name, content, raw_dtype=ggml_type)


UNKNOWN = "handmade"
"""An architecture that nobody knows, so that files of it may have any tensors."""


def write(
    path: Path,
    fill: Callable[[GGUFWriter], object],
    architecture: str = UNKNOWN,
    **options: Any,
) -> Path:
    """Write a GGUF; options are the writer's. Returns the path of the file or the first shard."""
    writer = GGUFWriter(path, architecture, **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))[0]


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, dims (fastest first) and bytes of each tensor, in the file's order."""
    return {
        t.name: (t.tensor_type.name, tuple(t.shape.tolist()), t.data.tobytes())
        for t in GGUFReader(path).tensors
    }


def keys_of(path: Path) -> Mapping[str, tuple[list[Any], Any]]:
    """Return types and value of each key, in the file's order."""
    fields = GGUFReader(path).fields
    return {n: (f.types, f.contents()) for n, f in fields.items() if not n.startswith("GGUF.")}
