"""The header of a GGUF file: its keys and its tensor table; every length in it is checked.

Little-endian throughout; a string is a u64 length and UTF-8 bytes:

    "GGUF", u32 version (2 or 3), u64 n_tensors, u64 n_keys
    n_keys times     string key, u32 type, value  (array: u32 type, u64 count, values)
    n_tensors times  string name, u32 n_dims, u64 dims (fastest first), u32 type, u64 offset
    padding to general.alignment (default 32), then the data

Source: docs/gguf.md in ggml, and the limits of gguf.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUFValueType

from dynquant.errors import CheckpointError
from dynquant.keys import FORMATS, Keys, KeyValue, Scalar
from dynquant.quants.table import ALL
from dynquant.stored_files import StoredFile, stored_file
from dynquant.untrusted import shown

VERSIONS = (2, 3)
MAX_NAME = 63
"""Bytes of a tensor's name: ggml has 64, including the terminating zero (GGML_MAX_NAME)."""

MAX_DIMS = 4
"""GGML_MAX_DIMS."""

MAX_ITEMS = 1 << 24
"""Limit on items of an array and bytes of a string: 60 times the largest vocabulary in use. It is
less than the size of a large file, so that a damaged length does not allocate that much memory."""

MAX_HEADER = 1 << 27
"""Bytes of keys and tensor table together: 128 MiB, ten times as much as the largest model has."""

MAX_ENTRIES = 1 << 20
"""Limit on keys, and on tensors, of a file; the largest models have thousands."""

MAX_ALIGNMENT = 1 << 16
"""Limit on the alignment of the data: 32 in all files in use. Outputs are padded to it."""

_CHUNK = 1 << 20
_TYPES = {
    **{t.ggml_type: (t.name, t.block_size, t.type_size) for t in ALL.values()},
    **{int(t): (t.name, *sizes) for t, sizes in GGML_QUANT_SIZES.items()},
}
"""Types by number: those of the gguf package, and those that only dynquant supports."""

_MIN_KEY, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes of the shortest entry of each table


@dataclass(frozen=True)
class GGUFTensor:
    """One row of the tensor table.

    shape: numpy order; offset: bytes from the start of the data section
    type_name, ggml_type: name and number of its type
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    ggml_type: int
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file; the data begin at byte `data_offset`.

    table_end: the byte after the tensor table; padding fills the space up to the data
    """

    path: Path
    keys: Keys
    tensors: tuple[GGUFTensor, ...]
    data_offset: int
    alignment: int
    table_end: int


class _Cursor:
    """Reads a file once, front to back, in chunks; checks each length against the file's size.

    on_error: the `errors` argument of bytes.decode for values that are not UTF-8
    """

    def __init__(self, path: Path, file: BinaryIO, on_error: str) -> None:
        self.path = path
        self.on_error = on_error
        self.file = file
        self.size = file.seek(0, 2)
        file.seek(0)
        self.buffer = b""
        self.start = 0  # of the buffer in the file
        self.at = 0  # in the buffer
        self.values = 0  # read so far

    @property
    def offset(self) -> int:
        return self.start + self.at

    def error(self, what: str, offset: int | None = None) -> CheckpointError:
        where = self.offset if offset is None else offset
        return CheckpointError(f"{self.path}: byte {where}: {what}")

    def need(self, n: int, what: str) -> None:
        """Read the next n bytes into the buffer; raise before allocating if they are too many."""
        left = self.size - self.offset
        if n > left:
            raise self.error(f"{what} has {n} bytes, but the file ends after {left}")
        if self.offset + n > MAX_HEADER:
            raise self.error(f"keys and tensor table have more than {MAX_HEADER} bytes", 0)
        if self.at + n > len(self.buffer):
            rest = self.buffer[self.at :]
            self.start, self.at = self.offset, 0
            self.buffer = rest + self.file.read(max(n - len(rest), _CHUNK))
            if len(self.buffer) < n:
                raise self.error("the file became shorter while it was read")

    def spend(self, count: int, what: str) -> None:
        """Count values; raise if all arrays of the file together have too many."""
        self.values += count
        if self.values > MAX_ITEMS + 8 * MAX_ENTRIES:  # the table has up to seven a tensor
            raise self.error(
                f"{what}: {self.values} values in all arrays, too many for a GGUF header"
            )

    def numbers(self, count: int, letter: str, what: str) -> tuple[Scalar, ...]:
        n = count * struct.calcsize(f"<{letter}")
        self.spend(count, what)
        self.need(n, what)
        found = struct.unpack_from(f"<{count}{letter}", self.buffer, self.at)
        self.at += n
        return found

    def count(self, letter: str, what: str) -> int:
        return int(self.numbers(1, letter, what)[0])

    def text(self, what: str, at_most: int, errors: str = "strict") -> str:
        n = self.count("Q", f"the length of {what}")
        if n > at_most:
            raise self.error(f"{what} is {n} bytes long; at most {at_most} are read")
        self.need(n, what)
        try:
            found = self.buffer[self.at : self.at + n].decode("utf-8", errors)
        except UnicodeDecodeError as e:
            raise self.error(f"{what} is not UTF-8") from e
        self.at += n
        return found

    def texts(self, count: int, what: str) -> tuple[str, ...]:
        """Read strings; does not call `text`, because a vocabulary has 10^5 of them."""
        if count * 8 > self.size - self.offset:
            raise self.error(f"{what} has {count} strings, which do not fit into the file")
        self.spend(count, what)
        found: list[str] = []
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self.at + 8 > len(self.buffer):
                self.need(8, what)
            end = self.at + 8 + length(self.buffer, self.at)[0]
            if end > len(self.buffer):
                n = end - self.at
                if n - 8 > MAX_ITEMS:
                    raise self.error(f"{what} has a string of {n - 8} bytes")
                self.need(n, what)
                end = self.at + n
            found.append(self.buffer[self.at + 8 : end].decode("utf-8", self.on_error))
            self.at = end
        return tuple(found)


def read_gguf(path: Path | StoredFile, *, exact: bool = False) -> GGUFFile:
    """Read a GGUF file's keys and tensor table.

    exact: bytes of a string value that are not UTF-8 (llama.cpp cuts some strings at a byte) become
           surrogates, which `packed` turns back into bytes; otherwise `\\xNN`, which can be printed

    Raises CheckpointError with the file and the byte offset of what is wrong.
    """
    stored = stored_file(path)
    path = stored.path
    try:
        with stored.open() as file:
            return _read(_Cursor(path, file, "surrogateescape" if exact else "backslashreplace"))
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e


def _read(cursor: _Cursor) -> GGUFFile:
    if cursor.size < 24:
        raise cursor.error(f"{cursor.size} bytes are too few for a GGUF file")
    cursor.need(24, "the header")
    magic = cursor.buffer[:8]
    if magic == b"version ":
        raise cursor.error("a Git LFS pointer, not the file; run `git lfs pull`")
    if magic[:4] != b"GGUF":
        raise cursor.error(f"{magic[:4]!r} is not GGUF's magic")
    cursor.at = 4
    version = cursor.count("I", "the version")
    if version not in VERSIONS:
        big = " of a big-endian file" if version >> 16 and not version & 0xFFFF else ""
        raise cursor.error(f"version {version}{big}; versions 2 and 3, little-endian, are read", 4)
    n_tensors, n_keys = cursor.count("Q", "a count"), cursor.count("Q", "a count")
    if n_keys * _MIN_KEY + n_tensors * _MIN_TENSOR > cursor.size:
        raise cursor.error(f"{n_tensors} tensors and {n_keys} keys do not fit into the file", 8)
    if max(n_keys, n_tensors) > MAX_ENTRIES:
        raise cursor.error(f"{n_tensors} tensors and {n_keys} keys; at most {MAX_ENTRIES}", 8)
    keys: Keys = {}
    for _ in range(n_keys):
        name, value = _key(cursor, keys)
        keys[name] = value
    alignment = _alignment(cursor, keys)
    tensors: dict[str, GGUFTensor] = {}
    for _ in range(n_tensors):
        tensor = _tensor(cursor, alignment, tensors)
        tensors[tensor.name] = tensor
    table_end = cursor.offset
    data_offset = -(-table_end // alignment) * alignment
    CheckpointError.raise_any(
        f"{cursor.path}: byte {data_offset + offset}: {what}"
        for offset, what in _places(list(tensors.values()), cursor.size - data_offset)
    )
    return GGUFFile(cursor.path, keys, tuple(tensors.values()), data_offset, alignment, table_end)


def _key(cursor: _Cursor, keys: Keys) -> tuple[str, KeyValue]:
    at = cursor.offset
    name = cursor.text("a key", 65535)
    if not name or name in keys:
        what = f"key {shown(name)} appears twice" if name else "a key without a name"
        raise cursor.error(what, at)
    if not name.isprintable():
        raise cursor.error(f"key {shown(name)} is not printable", at)
    type_ = _type(cursor, name)
    if type_ is not GGUFValueType.ARRAY:
        if type_ is GGUFValueType.STRING:
            return name, KeyValue(cursor.text(name, MAX_ITEMS, cursor.on_error), type_)
        return name, KeyValue(_numbers(cursor, 1, type_, name)[0], type_)
    sub_type = _type(cursor, name)
    count = cursor.count("Q", f"the length of {name}")
    if sub_type is GGUFValueType.ARRAY:
        raise cursor.error(f"{name} is an array of arrays, which llama.cpp does not support either")
    if count > MAX_ITEMS:
        raise cursor.error(f"{name} has {count} items; at most {MAX_ITEMS} are read")
    if sub_type is GGUFValueType.STRING:
        return name, KeyValue(cursor.texts(count, name), type_, sub_type)
    return name, KeyValue(_numbers(cursor, count, sub_type, name), type_, sub_type)


def _type(cursor: _Cursor, name: str) -> GGUFValueType:
    number = cursor.count("I", f"the type of {name}")
    try:
        return GGUFValueType(number)
    except ValueError:
        raise cursor.error(f"{name} has value type {number}, which GGUF does not define") from None


def _numbers(cursor: _Cursor, count: int, type_: GGUFValueType, what: str) -> tuple[Scalar, ...]:
    found = cursor.numbers(count, FORMATS[type_], what)
    if type_ is not GGUFValueType.BOOL:
        return found
    if any(v not in (0, 1) for v in found):
        raise cursor.error(f"{what} is neither true nor false", cursor.offset - count)
    return tuple(bool(v) for v in found)


def _alignment(cursor: _Cursor, keys: Keys) -> int:
    found = keys.get("general.alignment", KeyValue(GGUF_DEFAULT_ALIGNMENT, GGUFValueType.UINT32))
    value = found.value
    if found.type is not GGUFValueType.UINT32 or not isinstance(value, int) or value < 1:
        raise cursor.error(f"general.alignment {shown(value)} is not a positive u32")
    if value & (value - 1) or value > MAX_ALIGNMENT:
        raise cursor.error(
            f"general.alignment {value} is not a power of two, at most {MAX_ALIGNMENT}"
        )
    return value


def _tensor(cursor: _Cursor, alignment: int, tensors: dict[str, GGUFTensor]) -> GGUFTensor:
    at = cursor.offset
    name = cursor.text("a tensor's name", MAX_NAME)
    if name in tensors:
        raise cursor.error(f"tensor {name!r} appears twice", at)
    if not name.isprintable():
        raise cursor.error(f"{name!r} is not a printable name", at)
    n_dims = cursor.count("I", f"the dimensions of {name}")
    if n_dims > MAX_DIMS:
        raise cursor.error(f"{name} has {n_dims} dimensions; ggml has at most {MAX_DIMS}", at)
    dims = [int(d) for d in cursor.numbers(n_dims, "Q", f"the shape of {name}")]
    number, offset = cursor.count("I", f"the type of {name}"), cursor.count("Q", "an offset")
    if number not in _TYPES:
        raise cursor.error(
            f"{name} has ggml type {number}; neither the gguf package nor dynquant supports it", at
        )
    type_name, block_size, type_size = _TYPES[number]
    n_per_row = dims[0] if dims else 1
    if 0 in dims or n_per_row % block_size:
        raise cursor.error(
            f"{name} has rows of {n_per_row} weights in shape {dims[::-1]}; {type_name}"
            f" needs a multiple of {block_size}",
            at,
        )
    if offset % alignment:
        raise cursor.error(f"{name} has offset {offset}, not a multiple of {alignment}", at)
    n_bytes = prod(dims) // block_size * type_size
    return GGUFTensor(name, tuple(dims[::-1]), type_name, number, offset, n_bytes)


def _places(tensors: list[GGUFTensor], n_data: int) -> Iterator[tuple[int, str]]:
    """Yield offset and message for tensors that overlap and for data that are missing."""
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            yield tensor.offset, f"{before} and {tensor.name} overlap"
        if tensor.offset + tensor.n_bytes > end:
            end, before = tensor.offset + tensor.n_bytes, tensor.name
    if tensors and end > n_data:  # a file without tensors, such as a vocabulary, is not padded
        yield n_data, f"truncated: {end - n_data} bytes of the data are missing"
