"""GGUF files with tensors left out or split, copied with the gguf package; llama.cpp loads them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

Tensor = tuple[str, np.ndarray, GGMLQuantizationType]
"""Name, bytes and type of a tensor."""


def tensors_in(path: Path) -> list[Tensor]:
    """Return the tensors of a file."""
    return [(t.name, t.data, t.tensor_type) for t in GGUFReader(path).tensors]


def copy(
    path: Path,
    out: Path,
    change: Callable[[list[Tensor]], Iterable[Tensor]] = list,
    without_keys: tuple[str, ...] = (),
) -> Path:
    """Write a file with changed tensors, and with the same keys or some of them."""
    reader = GGUFReader(path)
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", *without_keys)) or name == "general.architecture":
            continue
        sub_type = field.types[1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for name, data, type_ in change(tensors_in(path)):
        writer.add_tensor(name, np.array(data), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def without(path: Path, out: Path, left_out: Callable[[str], bool]) -> Path:
    """Write a file without some of its tensors."""
    return copy(path, out, lambda tensors: (t for t in tensors if not left_out(t[0])))


def without_one(path: Path) -> Callable[[str, Path], None]:
    """Return a function that writes a file without one of its tensors.

    The same as `without`, but the keys are copied as they are, which takes a tenth of the time.
    """
    reader = GGUFReader(path)
    tensors = list(reader.tensors)
    content = path.read_bytes()
    keys = content[24 : tensors[0].field.offset]
    counts = struct.unpack_from("<QQ", content, 8)
    align = reader.alignment

    def write(name: str, out: Path) -> None:
        infos, data = b"", b""
        for tensor in tensors:
            if tensor.name == name:
                continue
            text, shape = tensor.name.encode(), [int(n) for n in tensor.shape]
            infos += struct.pack("<Q", len(text)) + text + struct.pack("<I", len(shape))
            infos += struct.pack(f"<{len(shape)}Q", *shape)
            infos += struct.pack("<IQ", tensor.tensor_type, len(data))
            start = int(tensor.data_offset)
            data += content[start : start + int(tensor.n_bytes)]
            data += bytes(-len(data) % align)
        header = content[:8] + struct.pack("<QQ", counts[0] - 1, counts[1]) + keys + infos
        out.write_bytes(header + bytes(-len(header) % align) + data)

    return write


def single_experts(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield a tensor for each expert, with the names that llama.cpp's converter used until 2024."""
    for name, data, type_ in tensors:
        if not name.endswith("_exps.weight"):
            yield name, data, type_
            continue
        for expert in range(data.shape[0]):
            single = name.replace("_exps.weight", f".{expert}.weight")
            yield single, np.ascontiguousarray(data[expert]), type_
