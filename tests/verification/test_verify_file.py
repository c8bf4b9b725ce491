"""Damage of every kind is found and named; what cannot be known without a manifest is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ggufs import add, write
from handmade import recipe, weights
from manifests import manifest_of, write_manifest
from places import TINY_BOOKS
from typer.testing import CliRunner

import dynquant
from dynquant.cli import app
from dynquant.plan.shards import Split
from dynquant.verification.findings import Verified
from dynquant.verification.standalone import verify

TABLE = ("length", "name", "dimensions", "shape", "type", "offset")
MIXED = "rules: [{role: ffn_down, type: Q4_K}, {role: attn_v, type: Q6_K}]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file, its manifest, and the same in three shards."""
    folder = tmp_path_factory.mktemp("made")
    dynquant.convert(TINY_BOOKS, folder / "x.gguf", recipe=recipe("Q4_0", MIXED), threads=1)
    write_manifest(folder / "x.gguf")
    dynquant.convert(
        TINY_BOOKS,
        folder / "s.gguf",
        recipe=recipe("Q4_0", MIXED),
        threads=1,
        split=Split(max_tensors=17),
    )
    shards = sorted(folder.glob("s-*.gguf"))
    assert len(shards) == 3
    write_manifest(folder / "s.gguf", shards)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def told(found: Verified) -> str:
    return "\n".join(map(str, found.faults))


def parts_of(path: Path) -> dict[str, int]:
    """A byte in each part of a file, by what the part is; places are the gguf package's."""
    reader = gguf.GGUFReader(path)
    fields = reader.fields
    places = {"magic": 1, "version": 4, "count of tensors": 8, "count of keys": 16}
    for name in ("general.architecture", "general.file_type", "tokenizer.ggml.tokens"):
        field = fields[name]
        places[f"name of {name}"] = field.offset + 10
        places[f"value of {name}"] = field.offset + sum(int(p.nbytes) for p in field.parts) - 1
    table = reader.tensors[5].field
    place = table.offset
    for part, what in zip(table.parts, TABLE, strict=True):
        places[f"{what} in the table"] = place
        place += int(part.nbytes)
    places["first byte of the data"] = int(min(t.data_offset for t in reader.tensors))
    places["last byte"] = path.stat().st_size - 1
    return places


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_an_honest_file_is_sound_alone_and_with_its_manifest(made: Path) -> None:
    for name in ("x.gguf", "s.gguf", "s-00002-of-00003.gguf"):
        found = verify(made / name)
        assert told(found) == ""
        assert found.warnings == ()
        assert found.unchecked == ()
    (made / "alone").mkdir()
    shutil.copy(made / "x.gguf", made / "alone")
    found = verify(made / "alone" / "x.gguf")
    assert found.is_sound
    assert found.unchecked == (
        "that no byte changed since it was made: it has no manifest, and so no checksums",
    )


def test_the_manifest_that_convert_writes_is_that_of_its_file(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    words = ["convert", str(TINY_BOOKS), "-o", str(out), "-r", "dynamic-4bit"]
    assert CliRunner().invoke(app, [*words, "--split-max-tensors", "20"]).exit_code == 0
    found = verify(out)
    assert (told(found), found.warnings, found.unchecked) == ("", (), ())
    assert "sha256 of 3 files" in found.checked[2]


def test_a_flipped_bit_is_found_in_every_part_of_a_file(folder: Path) -> None:
    path = folder / "x.gguf"
    places = parts_of(path)
    assert len(places) > 15
    for part, at in places.items():
        flip(path, at)
        found = verify(path, threads=1)
        assert not found.is_sound, part
        assert str(path) in told(found), part
        flip(path, at)
    assert verify(path).is_sound


def test_a_flipped_bit_is_found_in_the_first_and_the_last_byte_of_every_tensor(
    folder: Path,
) -> None:
    path = folder / "x.gguf"
    for tensor in gguf.GGUFReader(path).tensors:
        begin, end = int(tensor.data_offset), int(tensor.data_offset + tensor.n_bytes - 1)
        at, bit = (begin, 1) if len(tensor.name) % 2 else (end, 2)
        flip(path, at, bit)
        found = verify(path, threads=1)
        assert tensor.name in {f.tensor for f in found.faults}, tensor.name
        assert {f.file for f in found.faults} == {path}
        flip(path, at, bit)


def test_flipped_bits_anywhere_are_found(folder: Path) -> None:
    path = folder / "x.gguf"
    rng = np.random.default_rng(0)
    for at in rng.integers(0, path.stat().st_size, 30):
        flip(path, int(at), int(at) % 8)
        assert not verify(path, threads=1).is_sound
        flip(path, int(at), int(at) % 8)


def test_a_changed_key_is_said_to_lie_before_the_tensors(folder: Path) -> None:
    path = folder / "x.gguf"
    flip(path, path.read_bytes().index(b"general.name") + 12 + 4 + 8)
    (message,) = map(str, verify(path).faults)
    assert message.startswith(
        f"{path}: its sha256 is not that of the manifest x.gguf.manifest.json;"
    )
    assert re.search(r"in bytes 0 to \d+, the keys and the tensor table$", message)


def test_padding_that_is_not_zero_is_found_without_a_manifest(tmp_path: Path) -> None:
    names = [f"blk.{i}.attn_norm.weight" for i in range(3)]
    path = write(tmp_path / "x.gguf", lambda w: [add(w, n, weights(5)) for n in names])
    tensors = gguf.GGUFReader(path).tensors
    assert path.read_bytes()[tensors[0].data_offset - 1] == 0
    ends = [int(t.data_offset + t.n_bytes) for t in tensors]
    before = verify(path).faults
    for at in (int(tensors[0].data_offset) - 1, ends[0], ends[1] + 11, path.stat().st_size - 1):
        flip(path, at, 7)
        (fault,) = set(verify(path).faults) - set(before)
        assert str(fault).startswith(f"{path}: byte {at}: padding that is not zero")
        flip(path, at, 7)


@pytest.mark.parametrize("left", [0, 3, 20, 100, 5000, 100_000, -1])
def test_a_truncated_file_is_named(folder: Path, left: int) -> None:
    path = folder / "x.gguf"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(left % size)
    assert str(path) in told(verify(path))


def test_bytes_after_the_data_are_found_without_a_manifest(folder: Path) -> None:
    path = folder / "x.gguf"
    (folder / "x.gguf.manifest.json").unlink()
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"more")
    (message,) = map(str, verify(path).faults)
    assert message.startswith(f"{path}: byte {size}: 4 bytes after the last tensor")


def exchange(a: Path, b: Path) -> None:
    other = a.with_name("other")
    a.rename(other)
    b.rename(a)
    other.rename(b)


def test_exchanged_shards_are_named(folder: Path) -> None:
    shards = sorted(folder.glob("s-*.gguf"))
    exchange(shards[1], shards[2])
    assert [str(f).partition(":")[0] for f in verify(shards[0]).faults] == [*map(str, shards[1:])]


def test_a_shard_of_another_conversion_is_named_with_its_tensors(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    dynquant.convert(
        TINY_BOOKS,
        other / "s.gguf",
        recipe=recipe("Q4_0", MIXED),
        effort="fast",
        threads=1,
        split=Split(max_tensors=17),
    )
    name = "s-00002-of-00003.gguf"
    shutil.copy(other / name, folder / name)
    found = verify(folder / "s.gguf")
    assert {f.file for f in found.faults} == {folder / name}
    assert len([f for f in found.faults if f.tensor]) > 5


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "s-00002-of-00003.gguf").unlink()
    assert "s-00002-of-00003.gguf" in told(verify(folder / "s-00001-of-00003.gguf"))


def test_tensors_that_changed_places_are_named_with_whose_bytes_they_have(folder: Path) -> None:
    path = folder / "x.gguf"
    reader = gguf.GGUFReader(path)
    a, b = (t for t in reader.tensors if t.name in ("blk.0.attn_q.weight", "blk.1.attn_q.weight"))
    bytes_a, bytes_b = a.data.tobytes(), b.data.tobytes()
    with path.open("r+b") as file:
        file.seek(int(a.data_offset))
        file.write(bytes_b)
        file.seek(int(b.data_offset))
        file.write(bytes_a)
    found = {f.tensor: str(f) for f in verify(path).faults}
    assert found[a.name].endswith(f"they are those of {b.name}")
    assert found[b.name].endswith(f"they are those of {a.name}")


def counted(manifest: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
    manifest["tensors"] = tensors
    manifest["output"]["tensor_bytes"] = sum(t["bytes"] for t in tensors)


Change = Callable[[dict[str, Any]], object]

CHANGES: dict[str, tuple[Change, str]] = {
    "type": (lambda m: m["tensors"][3].update(type="Q8_0"), "type is "),
    "shape": (lambda m: m["tensors"][3].update(shape=[1, 2]), "shape is "),
    "offset": (lambda m: m["tensors"][3].update(offset=0), "offset is "),
    "a tensor less": (lambda m: counted(m, m["tensors"][:-1]), "is not in the manifest"),
    "a tensor more": (
        lambda m: counted(m, [*m["tensors"], {**m["tensors"][0], "name": "gone.weight"}]),
        "gone.weight of the manifest",
    ),
    "a file more": (
        lambda m: m["output"]["files"].append({**m["output"]["files"][0], "name": "y.gguf"}),
        "is one of 1 file, and the manifest x.gguf.manifest.json has 2",
    ),
    "effort": (lambda m: m.update(effort="best"), "dynquant.effort is 'normal', and 'best'"),
    "a size": (lambda m: m["output"]["files"][0].update(bytes=10**9), "and 1,000,000,000 in"),
    "a version": (lambda m: m.update(manifest=2), "version"),
    "no files": (lambda m: m["output"].pop("files"), "manifest"),
    "a list": (lambda m: m.update(tensors=None), "manifest"),
    "a number": (lambda m: m["tensors"][3].update(bytes=-1), "manifest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_says_otherwise_is_a_fault(folder: Path, change: str) -> None:
    apply, message = CHANGES[change]
    manifest = manifest_of(folder / "x.gguf")
    apply(manifest)
    (folder / "x.gguf.manifest.json").write_text(json.dumps(manifest))
    assert message in told(verify(folder / "x.gguf"))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"manifest": NaN}', "\xff"])
def test_a_manifest_that_is_none_is_a_fault_and_the_rest_is_checked(
    folder: Path, text: str
) -> None:
    (folder / "x.gguf.manifest.json").write_text(text, encoding="latin-1")
    found = verify(folder / "x.gguf")
    assert "x.gguf.manifest.json" in told(found)
    assert len(found.checked) == 2
    assert "its manifest cannot be read" in found.unchecked[0]


def test_the_verdict_does_not_depend_on_threads(folder: Path) -> None:
    flip(folder / "x.gguf", 2_000_000)
    assert verify(folder / "x.gguf", threads=1) == verify(folder / "x.gguf", threads=4)


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["verify", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


def test_faults_are_lines_on_stderr_and_the_exit_code_is_one(folder: Path) -> None:
    path = folder / "x.gguf"
    flip(path, path.stat().st_size // 2)
    code, out, err = run(path)
    assert code == 1
    assert len(err.splitlines()) == 2
    assert all(line.startswith(f"error: {path}: ") for line in err.splitlines())
    assert out.splitlines()[-1].startswith("x.gguf: 2 faults")


def test_a_sound_file_is_told_with_what_was_checked(folder: Path) -> None:
    code, out, err = run(folder / "x.gguf")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["checked"] * 3 + ["x.gguf:"]
    assert run(folder / "x.gguf", "--quiet") == (0, "", "")


def test_json_has_the_faults_with_their_places(folder: Path) -> None:
    path = folder / "x.gguf"
    tensor = gguf.GGUFReader(path).tensors[-1]
    flip(path, int(tensor.data_offset) + 40)
    code, out, _ = run(path, "--json")
    document = json.loads(out)
    assert (code, document["sound"]) == (1, False)
    assert document["faults"][0]["tensor"] == tensor.name
    assert document["faults"][0]["offset"] == int(tensor.data_offset)
    assert document["files"] == [{"name": "x.gguf", "bytes": path.stat().st_size}]


def test_a_file_that_is_not_there_or_no_gguf_is_a_fault(tmp_path: Path) -> None:
    assert run(tmp_path / "none.gguf")[0] == 1
    (tmp_path / "x.gguf").write_bytes(b"what" * 100)
    code, _, err = run(tmp_path / "x.gguf")
    assert (code, "is not GGUF's magic" in err) == (1, True)


def test_a_tensor_that_does_not_follow_the_one_before_is_refused_as_by_llamacpp(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path / "x.gguf", lambda w: [add(w, f"{c}.weight", weights(3, 64)) for c in "ab"]
    )
    a, b = gguf.GGUFReader(path).tensors
    content = bytearray(path.read_bytes())
    for tensor, other in ((a, b), (b, a)):  # the table the other way round
        at = tensor.field.offset + sum(int(p.nbytes) for p in tensor.field.parts) - 8
        content[at : at + 8] = int(other.field.parts[-1][0]).to_bytes(8, "little")
    path.write_bytes(content)
    assert "llama.cpp wants it at 0" in told(verify(path))
