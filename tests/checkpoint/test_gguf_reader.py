from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize
from ggufs import SCALARS
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.checkpoint.gguf import GGUFFile, read_gguf
from dynquant.errors import CheckpointError
from dynquant.keys import KeyValue
from dynquant.quants import ALL

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "MXFP4", "TQ2_0"]


def written(path: Path, fill: Callable[[GGUFWriter], object]) -> Path:
    writer = GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_tensors(writer: GGUFWriter) -> None:
    rng = np.random.default_rng(0)
    for i, name in enumerate(TYPES):
        ggml_type = GGMLQuantizationType[name]
        x = rng.standard_normal((2, i + 1, 256), np.float32)
        if name == "F32":
            writer.add_tensor("one.bias", x[0, 0, :3].copy())
        writer.add_tensor(f"t.{name}.weight", quantize(x, ggml_type), raw_dtype=ggml_type)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: str, type_: GGUFValueType, value: bytes) -> bytes:
    return string(name.encode()) + struct.pack("<I", type_) + value


def tensor(
    name: str, dims: list[int], ggml_type: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    n = len(dims) if n_dims is None else n_dims
    dimensions = struct.pack(f"<I{len(dims)}Q", n, *dims)
    return string(name.encode()) + dimensions + struct.pack("<IQ", ggml_type, offset)


def raw(keys: list[bytes], tensors: list[bytes], data: int = 0, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    content = head + b"".join(keys) + b"".join(tensors)
    return content + bytes(-len(content) % 32 + data)


def bytes_of(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("type_", SCALARS, ids=lambda t: t.name)
def test_a_key_of_each_type_keeps_value_and_type(tmp_path: Path, type_: GGUFValueType) -> None:
    path = written(tmp_path / "k.gguf", lambda w: w.add_key_value("k", SCALARS[type_], type_))
    assert read_gguf(path).keys["k"] == KeyValue(SCALARS[type_], type_)


@pytest.mark.parametrize("type_", SCALARS, ids=lambda t: t.name)
def test_an_array_of_each_type_keeps_values_and_types(tmp_path: Path, type_: GGUFValueType) -> None:
    values = [SCALARS[type_]] * 3
    path = written(
        tmp_path / "k.gguf", lambda w: w.add_key_value("k", values, GGUFValueType.ARRAY, type_)
    )
    assert read_gguf(path).keys["k"] == KeyValue(tuple(values), GGUFValueType.ARRAY, type_)


def test_an_empty_array_keeps_its_type(tmp_path: Path) -> None:
    value = struct.pack("<IQ", GGUFValueType.STRING, 0)
    path = bytes_of(tmp_path / "k.gguf", raw([key("k", GGUFValueType.ARRAY, value)], []))
    expected = KeyValue((), GGUFValueType.ARRAY, GGUFValueType.STRING)
    assert read_gguf(path).keys == {"k": expected}


def test_bytes_that_are_not_utf8_are_shown_as_escapes(tmp_path: Path) -> None:
    cut = key("k", GGUFValueType.STRING, string("né".encode()[:2]))
    path = bytes_of(tmp_path / "k.gguf", raw([cut], []))
    assert read_gguf(path).keys["k"].value == "n\\xc3"


def test_tensors_are_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    path = written(tmp_path / "t.gguf", with_tensors)
    found, expected = read_gguf(path), GGUFReader(path)
    assert found.data_offset == expected.data_offset
    assert [
        (t.name, t.shape, t.ggml_type, found.data_offset + t.offset, t.n_bytes)
        for t in found.tensors
    ] == [
        (t.name, tuple(map(int, t.shape))[::-1], t.tensor_type, t.data_offset, t.n_bytes)
        for t in expected.tensors
    ]


def test_types_missing_in_the_gguf_package_are_read(tmp_path: Path) -> None:
    q2_0 = ALL["Q2_0"]
    content = raw([], [tensor("t", [128, 3], q2_0.ggml_type)], 3 * q2_0.row_size(128))
    (found,) = read_gguf(bytes_of(tmp_path / "t.gguf", content)).tensors
    assert (found.type_name, found.ggml_type) == ("Q2_0", q2_0.ggml_type)
    assert (found.shape, found.n_bytes) == ((3, 128), 3 * q2_0.row_size(128))


def test_keys_equal_those_that_the_gguf_package_reads(tmp_path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        for type_, value in SCALARS.items():
            writer.add_key_value(f"scalar.{type_.name}", value, type_)
        writer.add_array("tokens", ["a", "Ġb", ""])
        writer.add_array("types", [1, -2, 3])
        with_tensors(writer)

    path = written(tmp_path / "k.gguf", fill)
    found, fields = read_gguf(path), GGUFReader(path).fields
    expected = {
        name: tuple(field.contents()) if isinstance(field.contents(), list) else field.contents()
        for name, field in fields.items()
        if not name.startswith("GGUF.")
    }
    assert {name: k.value for name, k in found.keys.items()} == expected
    assert list(found.keys) == list(expected)


def test_a_file_without_tensors_may_end_without_padding(tmp_path: Path) -> None:
    path = bytes_of(tmp_path / "v.gguf", raw([key("k", GGUFValueType.UINT8, b"1")], [])[:-20])
    assert path.stat().st_size % 32
    assert read_gguf(path).tensors == ()


def test_a_custom_alignment_moves_the_data(tmp_path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_custom_alignment(1024)
        with_tensors(writer)

    path = written(tmp_path / "a.gguf", fill)
    found = read_gguf(path)
    assert (found.alignment, found.data_offset) == (1024, GGUFReader(path).data_offset)


@pytest.mark.slow
def test_a_large_vocabulary_is_read(tmp_path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_array("tokens", [f"Ġtoken{i}" for i in range(150_000)])
        writer.add_array("merges", [f"Ġto ken{i}" for i in range(150_000)])
        writer.add_array("types", [1] * 150_000)

    path = written(tmp_path / "v.gguf", fill)
    keys = read_gguf(path).keys
    values = keys["merges"].value
    assert isinstance(values, tuple)
    assert values[-1] == "Ġto ken149999"


HUGE = 1 << 60
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "byte 0: 0 bytes are too few"),
    "other magic": (b"GGML" + bytes(40), "byte 0: b'GGML' is not GGUF's magic"),
    "Git LFS pointer": (b"version https://git-lfs.github.com", "git lfs pull"),
    "version 1": (raw([], [], version=1), "byte 4: version 1;"),
    "big-endian": (raw([], [], version=3 << 24), "big-endian"),
    "absurd counts": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, HUGE), "byte 8: .*do not fit"),
    "key longer than the file": (raw([struct.pack("<Q", 999)], [], 40), "byte 32: a key has 999"),
    "key absurdly long": (raw([struct.pack("<Q", HUGE)], []), "byte 32: a key is 1152921504"),
    "key without a name": (raw([key("", GGUFValueType.UINT8, b"1")], []), "byte 24: a key without"),
    "key is not UTF-8": (raw([string(b"\xff") + bytes(5)], []), "byte 32: a key is not UTF-8"),
    "key twice": (
        raw([key("k", GGUFValueType.UINT8, b"1")] * 2, []),
        "byte 38: key 'k' appears tw",
    ),
    "unknown value type": (raw([string(b"k") + struct.pack("<I", 13)], []), "k has value type 13"),
    "bool 7": (raw([key("k", GGUFValueType.BOOL, b"\7")], []), "byte 37: k is neither true nor"),
    "string longer than the file": (
        raw([key("k", GGUFValueType.STRING, struct.pack("<Q", 500))], []),
        "k has 500 bytes, but the file ends after",
    ),
    **{
        f"array of {HUGE} {t.name} that are not there": (
            raw([key("k", GGUFValueType.ARRAY, struct.pack("<IQ", t, HUGE))], []),
            "byte 49: k has 1152921504606846976 items",
        )
        for t in SCALARS
    },
    "array of unknown type": (
        raw([key("k", GGUFValueType.ARRAY, struct.pack("<IQ", 99, 0))], []),
        "k has value type 99",
    ),
    "nested arrays": (
        raw([key("k", GGUFValueType.ARRAY, struct.pack("<IQ", 9, 1) * 2000)], []),
        "byte 49: k is an array of arrays",
    ),
    "long string in an array": (
        raw(
            [key("k", GGUFValueType.ARRAY, struct.pack("<IQQ", 8, 2, 0) + struct.pack("<Q", HUGE))],
            [],
        ),
        "byte 57: k has a string of 1152921504606846976 bytes",
    ),
    "alignment 0": (
        raw([key("general.alignment", GGUFValueType.UINT32, bytes(4))], []),
        "general.alignment 0 is not a positive u32",
    ),
    "alignment 3": (
        raw([key("general.alignment", GGUFValueType.UINT32, b"\3\0\0\0")], []),
        "3 is not a power of two",
    ),
    "alignment of another type": (
        raw([key("general.alignment", GGUFValueType.UINT8, b"\x20")], []),
        "general.alignment 32 is not a positive u32",
    ),
    "tensor twice": (raw([], [tensor("t", [1])] * 2, 4), "byte 57: tensor 't' appears twice"),
    "tensor name of 64 bytes": (
        raw([], [tensor("t" * 64, [1])], 4),
        "is 64 bytes long; at most 63",
    ),
    "five dimensions": (raw([], [tensor("t", [1] * 5)], 4), "t has 5 dimensions"),
    "absurd dimensions": (
        raw([], [tensor("t", [], n_dims=2**32 - 1)]),
        "has 4294967295 dimensions",
    ),
    "unknown ggml type": (raw([], [tensor("t", [1], 999)], 4), "byte 24: t has ggml type 999"),
    "zero dimension": (raw([], [tensor("t", [4, 0])], 4), r"shape \[0, 4\]"),
    "row between blocks": (
        raw([], [tensor("t", [33, 2], GGMLQuantizationType.Q8_0)], 99),
        "rows of 33 weights .* Q8_0 needs a multiple of 32",
    ),
    "unaligned": (raw([], [tensor("t", [1], 0, 4)], 40), "t has offset 4, not a multiple of 32"),
    "overlap": (
        raw([], [tensor("t", [16]), tensor("u", [8], 0, 32)], 64),
        "byte 128: t and u overlap",
    ),
    "truncated data": (raw([], [tensor("t", [16])], 60), "truncated: 4 bytes of the data are miss"),
    "absurd shape": (raw([], [tensor("t", [2**63, 2**63, 2**63])], 4), "truncated"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_file_is_one_error_with_file_and_offset(tmp_path: Path, case: str) -> None:
    content, problem = BAD[case]
    path = bytes_of(tmp_path / "bad.gguf", content)
    with pytest.raises(CheckpointError, match=problem) as e:
        read_gguf(path)
    assert str(e.value).startswith(f"{path}: byte ")


def test_a_length_beyond_the_limit_is_refused_in_a_large_file(tmp_path: Path) -> None:
    # The file is large enough for the array, but a header must be smaller.
    value = struct.pack("<IQ", GGUFValueType.UINT8, 1 << 30)
    path = bytes_of(tmp_path / "bad.gguf", raw([key("k", GGUFValueType.ARRAY, value)], []))
    with path.open("r+b") as f:
        f.truncate(1 << 31)
    with pytest.raises(CheckpointError, match="k has 1073741824 items; at most"):
        read_gguf(path)


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.gguf: cannot be read"):
        read_gguf(tmp_path / "none.gguf")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    def fill(writer: GGUFWriter) -> None:
        for type_, value in SCALARS.items():
            writer.add_key_value(type_.name, value, type_)
        writer.add_array("tokens", ["a", "bc"])
        writer.add_array("types", [1, 2])
        writer.add_tensor("t", np.zeros((2, 3), np.float32))
        writer.add_tensor("u", np.zeros((2, 34), np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)

    return written(tmp_path_factory.mktemp("small") / "s.gguf", fill).read_bytes()


@pytest.mark.slow
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
    length=st.none() | st.integers(0, 10**6),
)
@settings(max_examples=500, deadline=2000)
def test_any_damage_gives_a_file_or_a_checkpoint_error(
    small: bytes,
    tmp_path_factory: pytest.TempPathFactory,
    flips: list[tuple[int, int]],
    length: int | None,
) -> None:
    content = bytearray(small)
    for at, byte in flips:
        content[at % len(content)] = byte
    if length is not None:
        del content[length % len(content) :]
    path = bytes_of(tmp_path_factory.getbasetemp() / "damaged.gguf", bytes(content))
    try:
        found = read_gguf(path)
    except CheckpointError as e:
        assert str(e).startswith(f"{path}: ")
    else:
        assert isinstance(found, GGUFFile)
