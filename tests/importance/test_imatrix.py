"""Both imatrix formats give the means that llama.cpp computes; damaged files are refused."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imatrices import (
    legacy_bytes,
    legacy_entry,
    write_counted,
    write_legacy,
    write_tensors,
)
from places import shared

from dynquant.arrays import F32
from dynquant.errors import ImportanceError
from dynquant.importance.entry import Entry
from dynquant.importance.imatrix import Imatrix, read_imatrix, write_imatrix

UP, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"
A = legacy_entry(b"blk.0.a.weight", 2, [2.0, 4.0])
B = legacy_entry(b"blk.1.a.weight", 2, [6.0])


def positive(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).chisquare(1, shape).astype(np.float32)


def read(path: Path, content: bytes) -> Imatrix:
    path.write_bytes(content)
    return read_imatrix(path)


def refused(path: Path) -> tuple[str, ...]:
    with pytest.raises(ImportanceError) as e:
        read_imatrix(path)
    assert all(m.startswith(f"{path}: ") for m in e.value.messages)
    return e.value.messages


def refused_bytes(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    (message,) = refused(path)
    return message.removeprefix(f"{path}: ")


def test_the_older_format_gives_values_over_calls(tmp_path: Path) -> None:
    found = read(tmp_path / "x.dat", legacy_bytes(A, B, n_chunks=5, dataset="büche.txt".encode()))
    assert {n: e.means().tolist() for n, e in found.entries.items()} == {
        "blk.0.a.weight": [[1.0, 2.0]],
        "blk.1.a.weight": [[3.0]],
    }
    assert (found.chunk_count, found.datasets) == (5, ("büche.txt",))


def test_the_tail_of_the_older_format_may_be_missing(tmp_path: Path) -> None:
    none = read(tmp_path / "x.dat", legacy_bytes(A))
    assert (none.chunk_count, none.datasets) == (None, ())
    chunks = read(tmp_path / "x.dat", legacy_bytes(A, n_chunks=5))
    assert (chunks.chunk_count, chunks.datasets) == (5, ())
    unnamed = read(tmp_path / "x.dat", legacy_bytes(A, n_chunks=5, dataset=b""))
    assert (unnamed.chunk_count, unnamed.datasets) == (5, ())


def test_values_without_calls_are_not_divided(tmp_path: Path) -> None:
    found = read(tmp_path / "x.dat", legacy_bytes(legacy_entry(b"a", 0, [2.0, 4.0])))
    assert found.entries["a"].means().tolist() == [[2.0, 4.0]]


def test_the_gguf_format_gives_sums_over_counts_for_each_expert(tmp_path: Path) -> None:
    sums = positive(3, 8)
    path = write_counted(
        tmp_path / "x.gguf", {UP: (positive(1, 4), [10]), EXPERTS: (sums, [5, 0, 2])}
    )
    found = read_imatrix(path)
    assert list(found.entries) == [UP, EXPERTS]
    experts = found.entries[EXPERTS]
    assert experts.counts == (5, 0, 2)
    wanted = np.stack([sums[0] / np.float32(5), np.ones(8, np.float32), sums[2] / np.float32(2)])
    assert np.array_equal(experts.means(), wanted)
    assert (found.chunk_count, found.datasets) == (7, ("books.txt", "more.txt"))


def test_the_keys_of_the_gguf_format_may_be_missing(tmp_path: Path) -> None:
    keys = {"general_type": None, "imatrix_datasets": None, "imatrix_chunk_count": None}
    found = read_imatrix(write_counted(tmp_path / "x", {UP: (positive(1, 4), [1])}, **keys))
    assert (found.chunk_count, found.datasets) == (None, ())


def test_tensors_that_are_neither_sums_nor_counts_are_ignored(tmp_path: Path) -> None:
    tensors = {
        f"{UP}.in_sum": positive(1, 4),
        f"{UP}.in_sum2": positive(1, 4),
        f"{UP}.counts": positive(1, 1),
    }
    assert list(read_imatrix(write_tensors(tmp_path / "x", tensors)).entries) == [UP]


def test_the_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    for path in (
        write_legacy(tmp_path / "x.dat", {UP: positive(4)}),
        write_counted(tmp_path / "x.gguf", {UP: (positive(1, 4), [1])}),
    ):
        assert read_imatrix(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_any_part_of_the_sums_can_be_read(tmp_path: Path) -> None:
    sums = positive(3, 8)
    found = read_imatrix(write_counted(tmp_path / "x", {EXPERTS: (sums, [1, 1, 1])}))
    assert np.array_equal(found.entries[EXPERTS].sums(7, 18), sums.ravel()[7:18])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "byte 0: 0 bytes are too few"),
        (b"abc", "byte 0: 3 bytes are too few"),
        (b"version https://git-lfs", "byte 0: a Git LFS pointer"),
        (b"<html>not found</html>", "byte 0: 1836345404 entries do not fit in 22 bytes"),
        (legacy_bytes(), "byte 0: 0 entries"),
        (struct.pack("<i", -1) + A, "byte 0: -1 entries"),
        (struct.pack("<i", 2) + A + B[:-4], "byte 64: blk.1.a.weight has 1 values, but the file"),
        (struct.pack("<i", 1) + A[:-4], "byte 30: blk.0.a.weight has 2 values, but the file ends"),
        (struct.pack("<iii", 1, 0, 0) + bytes(9), "byte 4: the length of a name is 0"),
        (struct.pack("<ii", 1, -5) + bytes(13), "byte 4: the length of a name is -5"),
        (struct.pack("<ii", 1, 64) + bytes(99), "byte 4: a tensor's name has 64 bytes"),
        (struct.pack("<ii", 1, 50) + bytes(13), "byte 8: a tensor's name has 50 bytes"),
        (legacy_bytes(legacy_entry(b"\xff", 1, [1.0])), "byte 8: a tensor's name is not UTF-8"),
        (
            legacy_bytes(legacy_entry(b"a\x1b[31m", 1, [1.0])),
            "byte 4: the name 'a\\x1b[31m' is not printable",
        ),
        (legacy_bytes(A, A), "byte 38: the name 'blk.0.a.weight' appears twice"),
        (
            legacy_bytes(legacy_entry(b"abc", -1, [1.0])),
            "byte 11: the number of calls of abc is",
        ),
        (legacy_bytes(legacy_entry(b"abc", 1, []), B), "byte 15: the number of values of abc is 0"),
        (legacy_bytes(A) + b"12", "byte 38: the number of chunks has 4 bytes"),
        (legacy_bytes(A, n_chunks=-1), "byte 38: the number of chunks is -1"),
        (legacy_bytes(A, n_chunks=1) + b"1234", "byte 46: the dataset has 875770417 bytes"),
        (legacy_bytes(A, n_chunks=1, dataset=b"x") + b"y", "byte 47: 1 bytes after the end"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_damaged_older_file_is_refused_with_the_byte(
    tmp_path: Path, content: bytes, message: str
) -> None:
    assert refused_bytes(tmp_path / "x.dat", content).startswith(message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.in_sum2": positive(1, 4)}, "'a.in_sum2' has no matching .counts"),
        ({"a.counts": positive(1, 1)}, "'a.counts' has no matching .in_sum2"),
        (
            {f"blk.{i}.a.in_sum2": positive(1, 4) for i in range(40)},
            "'blk.{0-39}.a.in_sum2' has no matching .counts",
        ),
        (
            {"a.in_sum2": positive(2, 4), "a.counts": positive(3, 1)},
            "'a.counts' [3, 1] is not a count for each row of 'a.in_sum2'",
        ),
        (
            {"a.in_sum2": positive(1, 4).astype(np.float16), "a.counts": positive(1, 1)},
            "'a.in_sum2' is F16 [1, 4]",
        ),
        (
            {".in_sum2": positive(1, 4), ".counts": positive(1, 1)},
            "'.in_sum2' is not a printable",
        ),
        ({"a.in_sum2": positive(1, 4), "a.counts": -positive(1, 1)}, "a.counts has the count -"),
        (
            {"a.in_sum2": positive(1, 4), "a.counts": np.full((1, 1), np.nan, np.float32)},
            "a.counts has the count nan",
        ),
        ({"a.weight": positive(1, 4)}, "a GGUF, but not an imatrix"),
    ],
)
def test_a_damaged_gguf_is_refused_with_the_tensor(
    tmp_path: Path, tensors: dict[str, F32], message: str
) -> None:
    (found, *_) = refused(write_tensors(tmp_path / "x.gguf", tensors))
    assert message in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general_type": "model"}, "not an imatrix: general.type is 'model'"),
        ({"imatrix_datasets": "one.txt"}, "imatrix.datasets is not a list of names"),
        ({"imatrix_datasets": [1, 2]}, "imatrix.datasets is not a list of names"),
        ({"imatrix_chunk_count": "many"}, "imatrix.chunk_count is 'many'"),
    ],
)
def test_a_gguf_with_keys_of_something_else_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write_counted(tmp_path / "x.gguf", {UP: (positive(1, 4), [1])}, **changes)
    assert message in refused(path)[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_values_that_cannot_be_mean_squares_are_refused_with_name_and_byte(
    tmp_path: Path, bad: float
) -> None:
    means = {f"blk.{i}.a.weight": positive(8) for i in range(4)}
    for i in (1, 2):
        means[f"blk.{i}.a.weight"][5] = bad
    (message,) = refused(write_legacy(tmp_path / "x.dat", means))
    size = 4 + 14 + 4 + 4 + 8 * 4
    kind = "negative" if bad == -1 else "not finite"
    at = 4 + size + 4 + 14 + 8 + 5 * 4
    assert f"byte {at}: values that are {kind}, in blk.{{1-2}}.a.weight" in message


def test_both_kinds_of_wrong_values_are_reported_together(tmp_path: Path) -> None:
    sums = positive(2, 4)
    sums[0, 0], sums[1, 3] = np.inf, -1
    path = write_counted(tmp_path / "x.gguf", {EXPERTS: (sums, [1, 1])})
    assert [m.split(", in ")[0].split(": ")[-1] for m in refused(path)] == [
        "values that are not finite",
        "values that are negative",
    ]


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.dat")[0].endswith("cannot be read: No such file or directory")
    assert refused(tmp_path)[0].endswith("cannot be read: Is a directory")


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "x.dat", {UP: positive(64)})
    found = read_imatrix(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImportanceError, match="ends at byte 100"):
        found.entries[UP].means()


def test_the_gguf_package_reads_a_written_imatrix(tmp_path: Path) -> None:
    entries = {UP: (positive(1, 4), [9]), EXPERTS: (positive(3, 8), [5, 0, 2])}
    write_imatrix(tmp_path / "x.gguf", entries, datasets=["a", "b"], chunk_count=11, chunk_size=512)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["a", "b"],
        "imatrix.chunk_count": 11,
        "imatrix.chunk_size": 512,
    }
    # ne, fastest dimension first: [n_per_row, n_rows] and [1, n_rows].
    shapes = {t.name: t.shape.tolist() for t in reader.tensors}
    assert shapes == {
        f"{UP}.in_sum2": [4, 1],
        f"{UP}.counts": [1, 1],
        f"{EXPERTS}.in_sum2": [8, 3],
        f"{EXPERTS}.counts": [1, 3],
    }
    for t in reader.tensors:
        name, kind = t.name.rsplit(".", 1)
        wanted = entries[name][0] if kind == "in_sum2" else np.array(entries[name][1])
        assert t.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(t.data.ravel(), wanted.ravel())


def test_a_written_imatrix_reads_back(tmp_path: Path) -> None:
    path, sums = tmp_path / "x.gguf", positive(3, 8)
    write_imatrix(path, {EXPERTS: (sums, [5, 1, 2])}, datasets=["a"], chunk_count=2, chunk_size=64)
    found = read_imatrix(path)
    counts = np.array([[5], [1], [2]], np.float32)
    assert np.array_equal(found.entries[EXPERTS].means(), sums / counts)
    assert (found.chunk_count, found.datasets) == (2, ("a",))


def test_sums_without_their_counts_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ImportanceError, match="a count for each row"):
        write_imatrix(
            tmp_path / "x", {UP: (positive(2, 4), [1])}, datasets=["a"], chunk_count=1, chunk_size=1
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("imatrix")
    counted = {UP: (positive(1, 4), [3]), EXPERTS: (positive(2, 4), [3, 0])}
    return (
        write_legacy(folder / "x.dat", {UP: positive(4), EXPERTS: positive(8)}).read_bytes(),
        write_counted(folder / "x.gguf", counted).read_bytes(),
    )


@pytest.mark.slow
@given(
    which=st.integers(0, 1),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
    length=st.none() | st.integers(0, 10**6),
)
@settings(max_examples=500, deadline=2000)
def test_any_damage_gives_valid_values_or_an_importance_error(
    small: tuple[bytes, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    which: int,
    flips: list[tuple[int, int]],
    length: int | None,
) -> None:
    content = bytearray(small[which])
    for at, byte in flips:
        content[at % len(content)] = byte
    if length is not None:
        del content[length % len(content) :]
    path = tmp_path_factory.getbasetemp() / "damaged.imatrix"
    path.write_bytes(bytes(content))
    try:
        found = read_imatrix(path)
    except ImportanceError as e:
        assert str(e).startswith(f"{path}: ")
    else:
        for entry in found.entries.values():
            assert 0 < entry.n_values <= len(content) // 4
            means = entry.means()
            assert np.all(np.isfinite(means) & (means >= 0))


@pytest.mark.shared
def test_the_imatrix_of_tinyllama_has_seven_matrices_of_each_layer() -> None:
    found = read_imatrix(shared("imatrix/tinyllama-1.1b.imatrix.dat"))
    roles = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    wide = {f"blk.{i}.{role}.weight": 2048 for i in range(22) for role in roles}
    wide |= {f"blk.{i}.ffn_down.weight": 5632 for i in range(22)}
    assert {n: e.n_values for n, e in found.entries.items()} == wide
    assert (found.chunk_count, found.datasets) == (365, ("imatrix-training-full-3",))
    means = found.entries["blk.21.ffn_up.weight"].means()
    assert means[0, 0] == np.float32(27.720335) / np.float32(365)


@pytest.mark.shared
def test_the_imatrix_of_gemma_contains_zeros_and_is_valid() -> None:
    found = read_imatrix(shared("imatrix/gemma-3-4b.imatrix.dat"))
    assert (len(found.entries), found.chunk_count) == (238, 320)

    def zeros(entry: Entry) -> int:
        return int((entry.means() == 0).sum())

    assert zeros(found.entries["blk.1.ffn_up.weight"]) == 6
    assert sum(zeros(e) > 0 for e in found.entries.values()) > 60
