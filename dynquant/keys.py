"""Typed values of a GGUF file's keys."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGUFValueType

Scalar = bool | int | float | str


@dataclass(frozen=True)
class KeyValue:
    """The value of a GGUF key with the type in which it is stored.

    `sub_type` is the element type of an array and None for a scalar.
    """

    value: Scalar | tuple[Scalar, ...]
    type: GGUFValueType
    sub_type: GGUFValueType | None = None


Keys = dict[str, KeyValue]

FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "B",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
"""The struct format of each type of fixed size; little-endian."""


def packed_text(text: str) -> bytes:
    """Return a string in GGUF's form: u64 length and bytes; surrogates are bytes of PEP 383."""
    content = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(content)) + content


def packed(key: KeyValue) -> bytes:
    """Return a key's type and value in GGUF's form; arrays may be empty."""
    if key.sub_type is None or not isinstance(key.value, tuple):
        return struct.pack("<I", key.type) + _packed_values((key.value,), key.type)
    head = struct.pack("<IIQ", key.type, key.sub_type, len(key.value))
    return head + _packed_values(key.value, key.sub_type)


def _packed_values(values: tuple[object, ...], type_: GGUFValueType) -> bytes:
    if type_ is GGUFValueType.STRING:
        return b"".join(packed_text(str(v)) for v in values)
    return struct.pack(f"<{len(values)}{FORMATS[type_]}", *values)


def u32(value: int) -> KeyValue:
    """Return an unsigned 32-bit integer, the usual type of counts and ids."""
    return KeyValue(value, GGUFValueType.UINT32)


def i32(value: int) -> KeyValue:
    """Return a signed 32-bit integer."""
    return KeyValue(value, GGUFValueType.INT32)


def f32(value: float) -> KeyValue:
    """Return a 32-bit float."""
    return KeyValue(float(value), GGUFValueType.FLOAT32)


def boolean(value: bool) -> KeyValue:
    """Return a truth value."""
    return KeyValue(value, GGUFValueType.BOOL)


def string(value: str) -> KeyValue:
    """Return a UTF-8 string."""
    return KeyValue(value, GGUFValueType.STRING)


def strings(values: Sequence[str]) -> KeyValue:
    """Return an array of strings."""
    return KeyValue(tuple(values), GGUFValueType.ARRAY, GGUFValueType.STRING)


def i32s(values: Sequence[int]) -> KeyValue:
    """Return an array of signed 32-bit integers, llama.cpp's type for token types and lists."""
    return KeyValue(tuple(values), GGUFValueType.ARRAY, GGUFValueType.INT32)


def u64s(values: Sequence[int]) -> KeyValue:
    """Return an array of unsigned 64-bit integers, for constants that other types would round."""
    return KeyValue(tuple(values), GGUFValueType.ARRAY, GGUFValueType.UINT64)


def booleans(values: Sequence[bool]) -> KeyValue:
    """Return an array of truth values, such as one for each layer."""
    return KeyValue(tuple(values), GGUFValueType.ARRAY, GGUFValueType.BOOL)


def f32s(values: Sequence[float]) -> KeyValue:
    """Return an array of 32-bit floats."""
    return KeyValue(tuple(float(v) for v in values), GGUFValueType.ARRAY, GGUFValueType.FLOAT32)


def u8s(values: bytes) -> KeyValue:
    """Return an array of bytes."""
    return KeyValue(tuple(values), GGUFValueType.ARRAY, GGUFValueType.UINT8)
