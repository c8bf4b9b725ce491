"""Every kind of damage is found and located; checks that need a manifest are reported."""

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
from subsets import slow_except
from typer.testing import CliRunner

import dynquant
from dynquant.cli import app
from dynquant.plan.shards import Split
from dynquant.verification.findings import Verification
from dynquant.verification.verify import verify

TABLE = ("length", "name", "dimensions", "shape", "type", "offset")
MIXED = "rules: [{role: ffn_down, type: Q4_K}, {role: attn_v, type: Q6_K}]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file and its manifest, and the same model in three shards."""
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


def faults_of(found: Verification) -> str:
    return "\n".join(map(str, found.faults))


def parts_of(path: Path) -> dict[str, int]:
    """Return the offset of a byte in each part of a file; the gguf package gives the offsets."""
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


@pytest.mark.slow
def test_correct_file_is_sound_with_and_without_manifest(made: Path) -> None:
    for name in ("x.gguf", "s.gguf", "s-00002-of-00003.gguf"):
        found = verify(made / name)
        assert faults_of(found) == ""
        assert found.warnings == ()
        assert found.unchecked == ()
    (made / "bare").mkdir()
    shutil.copy(made / "x.gguf", made / "bare")
    found = verify(made / "bare" / "x.gguf")
    assert found.is_sound
    assert [what.partition(":")[0] for what in found.unchecked] == [
        "checksums",
        "whether output.weight is missing",  # tiny-books has tied embeddings
    ]


@pytest.mark.slow
def test_manifest_written_by_convert_agrees_with_its_file(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    command = ["convert", str(TINY_BOOKS), "-o", str(out), "-r", "dynamic-4bit"]
    assert CliRunner().invoke(app, [*command, "--split-max-tensors", "20"]).exit_code == 0
    found = verify(out)
    assert (faults_of(found), found.warnings, found.unchecked) == ("", (), ())
    assert "sha256 of 3 files" in found.checked[2]


@pytest.mark.slow
def test_flipped_bit_is_found_in_every_part_of_a_file(folder: Path) -> None:
    path = folder / "x.gguf"
    places = parts_of(path)
    assert len(places) > 15
    for part, at in places.items():
        flip(path, at)
        found = verify(path, threads=1)
        assert not found.is_sound, part
        assert str(path) in faults_of(found), part
        flip(path, at)
    assert verify(path).is_sound


@pytest.mark.slow
def test_flipped_bit_is_found_in_first_and_last_byte_of_every_tensor(folder: Path) -> None:
    path = folder / "x.gguf"
    for tensor in gguf.GGUFReader(path).tensors:
        begin, end = int(tensor.data_offset), int(tensor.data_offset + tensor.n_bytes - 1)
        at, bit = (begin, 1) if len(tensor.name) % 2 else (end, 2)
        flip(path, at, bit)
        found = verify(path, threads=1)
        assert tensor.name in {f.tensor for f in found.faults}, tensor.name
        assert {f.file for f in found.faults} == {path}
        flip(path, at, bit)


@pytest.mark.slow
def test_flipped_bits_at_random_offsets_are_found(folder: Path) -> None:
    path = folder / "x.gguf"
    rng = np.random.default_rng(0)
    for at in rng.integers(0, path.stat().st_size, 30):
        flip(path, int(at), int(at) % 8)
        assert not verify(path, threads=1).is_sound
        flip(path, int(at), int(at) % 8)


@pytest.mark.slow
def test_changed_key_is_located_before_the_tensors(folder: Path) -> None:
    path = folder / "x.gguf"
    flip(path, path.read_bytes().index(b"general.name") + 12 + 4 + 8)
    (message,) = map(str, verify(path).faults)
    assert message.startswith(f"{path}: its sha256 differs from the manifest x.gguf.manifest.json;")
    assert re.search(r"in bytes 0 to \d+, the keys and the tensor table$", message)


def test_padding_other_than_zero_is_found_without_manifest(tmp_path: Path) -> None:
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
def test_truncated_file_is_named(folder: Path, left: int) -> None:
    path = folder / "x.gguf"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(left % size)
    assert str(path) in faults_of(verify(path))


def test_bytes_after_the_data_are_found_without_manifest(folder: Path) -> None:
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


@pytest.mark.slow
def test_shard_of_another_conversion_is_named_with_its_tensors(folder: Path) -> None:
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


def test_missing_shard_is_named(folder: Path) -> None:
    (folder / "s-00002-of-00003.gguf").unlink()
    assert "s-00002-of-00003.gguf" in faults_of(verify(folder / "s-00001-of-00003.gguf"))


@pytest.mark.slow
def test_exchanged_tensors_are_named_with_the_owner_of_their_bytes(folder: Path) -> None:
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
    assert found[a.name].endswith(f"they are the bytes of {b.name}")
    assert found[b.name].endswith(f"they are the bytes of {a.name}")


def set_tensors(manifest: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
    manifest["tensors"] = tensors
    manifest["output"]["tensor_bytes"] = sum(t["bytes"] for t in tensors)


Change = Callable[[dict[str, Any]], object]

CHANGES: dict[str, tuple[Change, str]] = {
    "type": (lambda m: m["tensors"][3].update(type="Q8_0"), "type is "),
    "shape": (lambda m: m["tensors"][3].update(shape=[1, 2]), "shape is "),
    "offset": (lambda m: m["tensors"][3].update(offset=0), "offset is "),
    "a tensor less": (lambda m: set_tensors(m, m["tensors"][:-1]), "is not in the manifest"),
    "a tensor more": (
        lambda m: set_tensors(m, [*m["tensors"], {**m["tensors"][0], "name": "gone.weight"}]),
        "gone.weight is missing, but listed in the manifest",
    ),
    "a file more": (
        lambda m: m["output"]["files"].append({**m["output"]["files"][0], "name": "y.gguf"}),
        "belongs to 1 file, but the manifest x.gguf.manifest.json lists 2",
    ),
    "effort": (lambda m: m.update(effort="best"), "dynquant.effort is 'normal', but 'best'"),
    "a size": (lambda m: m["output"]["files"][0].update(bytes=10**9), "but 1,000,000,000 in"),
    "a version": (lambda m: m.update(manifest=2), "version"),
    "no files": (lambda m: m["output"].pop("files"), "manifest"),
    "a list": (lambda m: m.update(tensors=None), "manifest"),
    "a number": (lambda m: m["tensors"][3].update(bytes=-1), "manifest"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", slow_except(list(CHANGES)[:3], CHANGES))
def test_manifest_that_disagrees_is_a_fault(folder: Path, change: str) -> None:
    apply, message = CHANGES[change]
    manifest = manifest_of(folder / "x.gguf")
    apply(manifest)
    (folder / "x.gguf.manifest.json").write_text(json.dumps(manifest))
    assert message in faults_of(verify(folder / "x.gguf"))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"manifest": NaN}', "\xff"])
def test_invalid_manifest_is_a_fault_and_the_rest_is_checked(folder: Path, text: str) -> None:
    (folder / "x.gguf.manifest.json").write_text(text, encoding="latin-1")
    found = verify(folder / "x.gguf")
    assert "x.gguf.manifest.json" in faults_of(found)
    assert len(found.checked) == 2
    assert "the manifest cannot be read" in found.unchecked[0]


@pytest.mark.slow
def test_result_does_not_depend_on_threads(folder: Path) -> None:
    flip(folder / "x.gguf", 2_000_000)
    assert verify(folder / "x.gguf", threads=1) == verify(folder / "x.gguf", threads=4)


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.slow
def test_command_prints_faults_on_stderr_and_exits_with_1(folder: Path) -> None:
    path = folder / "x.gguf"
    flip(path, path.stat().st_size // 2)
    code, out, err = run(path)
    assert code == 1
    assert len(err.splitlines()) == 2
    assert all(line.startswith(f"error: {path}: ") for line in err.splitlines())
    assert out.splitlines()[-1].startswith("x.gguf: 2 faults")


@pytest.mark.slow
def test_command_lists_the_checks_of_a_sound_file(folder: Path) -> None:
    code, out, err = run(folder / "x.gguf")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["checked"] * 3 + ["x.gguf:"]
    assert run(folder / "x.gguf", "--quiet") == (0, "", "")


@pytest.mark.slow
def test_json_has_faults_with_their_tensors_and_offsets(folder: Path) -> None:
    path = folder / "x.gguf"
    tensor = gguf.GGUFReader(path).tensors[-1]
    flip(path, int(tensor.data_offset) + 40)
    code, out, _ = run(path, "--json")
    document = json.loads(out)
    assert (code, document["sound"]) == (1, False)
    assert document["faults"][0]["tensor"] == tensor.name
    assert document["faults"][0]["offset"] == int(tensor.data_offset)
    assert document["files"] == [{"name": "x.gguf", "bytes": path.stat().st_size}]


@pytest.mark.slow
def test_missing_or_invalid_file_is_a_fault(tmp_path: Path) -> None:
    assert run(tmp_path / "none.gguf")[0] == 1
    (tmp_path / "x.gguf").write_bytes(b"what" * 100)
    code, _, err = run(tmp_path / "x.gguf")
    assert (code, "is not GGUF's magic" in err) == (1, True)


def test_tensors_out_of_order_are_a_fault_because_llamacpp_refuses_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.gguf", lambda w: [add(w, f"{c}.weight", weights(3, 64)) for c in "ab"]
    )
    a, b = gguf.GGUFReader(path).tensors
    content = bytearray(path.read_bytes())
    for tensor, other in ((a, b), (b, a)):  # exchange their offsets in the table
        at = tensor.field.offset + sum(int(p.nbytes) for p in tensor.field.parts) - 8
        content[at : at + 8] = int(other.field.parts[-1][0]).to_bytes(8, "little")
    path.write_bytes(content)
    assert "llama.cpp expects it at 0" in faults_of(verify(path))
