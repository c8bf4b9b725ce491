"""The list of attacks, their table, and functions that write files of any content."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

from places import REFERENCES, VOCABULARIES

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Attack:
    """An attack on a reader of targets.py.

    fed:     a description of the input
    outcome: `result`, or the class of the error and a part of its message
    """

    name: str
    fed: str
    reader: str
    outcome: tuple[str, str]
    make: Make


ATTACKS: list[Attack] = []


def on(reader: str, error: str = "result", message: str = "") -> Callable[[Make], Make]:
    """Register the files that a function writes as an attack on a reader."""

    def register(make: Make) -> Make:
        name = make.__name__.replace("_", " ").strip()
        fed = " ".join((make.__doc__ or "").split())
        ATTACKS.append(Attack(name, fed, reader, (error, message), make))
        return make

    return register


def table() -> str:
    """Return the attacks and their outcomes in Markdown."""
    lines = ["| reader | attack | input | outcome |", "| --- | --- | --- | --- |"]
    for a in ATTACKS:
        error, message = a.outcome
        outcome = "a result" if error == "result" else f"{error}: … {message} …"
        cells = [a.reader, a.name, a.fed, outcome]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


# Files


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with a header of any text."""
    return len(header).to_bytes(8, "little") + header + data


def checkpoint(at: Path, header: bytes, data: bytes = b"") -> None:
    """Write a folder with one file of tensors."""
    (at / "config.json").write_text("{}")
    (at / "model.safetensors").write_bytes(safetensors(header, data))


def entry(shape: str) -> bytes:
    """Return a header with one tensor of four bytes."""
    return b'{"w": {"dtype": "F32", "shape": %s, "data_offsets": [0, 4]}}' % shape.encode()


def indexed(at: Path, weight_map: dict[str, str]) -> None:
    """Write a folder with an index."""
    (at / "config.json").write_text("{}")
    index = json.dumps({"weight_map": weight_map})
    (at / "model.safetensors.index.json").write_text(index)


def text(value: bytes) -> bytes:
    """Return a string of a GGUF."""
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, type_: int, value: bytes) -> bytes:
    """Return a key of a GGUF."""
    return text(name) + struct.pack("<I", type_) + value


def array(sub_type: int, count: int, values: bytes = b"") -> bytes:
    """Return the value of a key of type 9."""
    return struct.pack("<IQ", sub_type, count) + values


ARCHITECTURE = key(b"general.architecture", 8, text(b"handmade"))
"""An architecture that nobody knows, so that a file of it may have any tensors."""
LLAMA = key(b"general.architecture", 8, text(b"llama"))


def row(name: bytes, dims: tuple[int, ...] = (32,), offset: int = 0, type_: int = 0) -> bytes:
    """Return a line of the tensor table, of F32 unless another type is given."""
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", type_, offset)


def gguf(keys: list[bytes], rows: list[bytes], data: bytes = b"") -> bytes:
    """Return a GGUF of keys and tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(keys)) + b"".join((*keys, *rows))
    return head + bytes(-len(head) % 32) + data


def sparse(path: Path, size: int) -> None:
    """Extend a file by a hole, which takes no space on the disk."""
    with path.open("ab") as file:
        file.truncate(size)


def reference(at: Path, name: str, **changes: Any) -> None:
    """Copy a reference checkpoint and change its config.json."""
    copytree(REFERENCES / name, at, dirs_exist_ok=True)
    path = at / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tokenizer(at: Path, name: str, file: str = "tokenizer.json") -> dict[str, Any]:
    """Copy a vocabulary and return the content of one of its files."""
    copytree(VOCABULARIES / name, at, dirs_exist_ok=True)
    return json.loads((at / file).read_text(encoding="utf-8"))


def save(at: Path, content: Any, file: str = "tokenizer.json") -> None:
    """Write a file of a vocabulary."""
    (at / file).write_text(json.dumps(content), encoding="utf-8")
