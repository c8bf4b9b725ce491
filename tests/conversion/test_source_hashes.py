"""Source files are hashed once, close to the encoders; oracles: hashlib and huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from handmade import bf16, model, recipe, weights
from places import TINY_BOOKS
from typer.testing import CliRunner

from dynquant.arch.base import ModelTensor
from dynquant.arrays import U8
from dynquant.checkpoint.hub import known_sha256
from dynquant.cli import app
from dynquant.conversion import source_hashes
from dynquant.conversion.manifest import Source, manifest_path
from dynquant.conversion.source_hashes import SourceDigests
from dynquant.conversion.work import work_of
from dynquant.conversion.write import convert_plan
from dynquant.errors import CheckpointError, ConvertError
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants import ALL
from dynquant.tensors import ShardFile, Stored

CONTENT = bf16(weights(40, 256)).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BLAKE3 = blake3(CONTENT).hexdigest()
OTHER = "0" * 64


def plan_of(*paths: Path) -> Plan:
    """Plan one tensor from each of these existing files."""
    tensors = [
        ModelTensor(f"blk.{i}.attn_q.weight", Stored(ShardFile(p), 0, (40, 256), ALL["BF16"]))
        for i, p in enumerate(paths)
    ]
    return make_plan(model(*tensors), recipe())


def found(plan: Plan, how: Any = "auto") -> list[Source]:
    digests = SourceDigests(work_of(plan), how, None)
    while digests.step(np.empty(source_hashes.PIECE, np.uint8)):
        pass
    return digests.sources()


def cached(folder: Path, name: str) -> Path:
    """Write a file as in the cache of huggingface_hub, with this name of its blob."""
    blob, link = folder / "blobs" / name, folder / "snapshots" / "abc" / "model.safetensors"
    blob.parent.mkdir(parents=True)
    link.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    link.symlink_to(Path("../../blobs") / name)
    return link


def downloaded(folder: Path, etag: str, later: float = 0.0) -> Path:
    """Write a file as `hf download --local-dir` does; later: seconds until a later write."""
    metadata = pytest.importorskip("huggingface_hub._local_folder")
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(CONTENT)
    metadata.write_download_metadata(folder, path.name, "f" * 40, etag)
    at = time.time() + later
    os.utime(path, (at, at))
    return path


def test_hash_of_a_file_in_the_hub_cache_is_the_name_of_its_blob(tmp_path: Path) -> None:
    path = cached(tmp_path, OTHER)
    (source,) = found(plan_of(path))
    assert (source.name, source.sha256, source.sha256_from) == ("model.safetensors", OTHER, "hub")


def test_hash_of_a_file_from_hf_download_is_its_etag(tmp_path: Path) -> None:
    (source,) = found(plan_of(downloaded(tmp_path / "x", OTHER)))
    assert (source.sha256, source.sha256_from) == (OTHER, "hub")


@pytest.mark.parametrize("name", ["a" * 40, "A" * 64, "0" * 64 + ".incomplete"])
def test_file_is_read_if_its_name_or_etag_is_not_a_sha256(tmp_path: Path, name: str) -> None:
    for path in (cached(tmp_path / "cache", name), downloaded(tmp_path / "local", name)):
        (source,) = found(plan_of(path))
        assert (source.sha256, source.blake3) == (None, BLAKE3)


def test_download_modified_later_is_read(tmp_path: Path) -> None:
    (source,) = found(plan_of(downloaded(tmp_path / "x", OTHER, later=5)))
    assert (source.sha256, source.blake3) == (None, BLAKE3)


@pytest.mark.parametrize(
    "metadata", [b"", b"\n", b"\n\n\n", b"a\n" + b"0" * 64 + b"\nsoon\n", b"\xff" * 99, b"a" * 9999]
)
def test_damaged_download_metadata_is_ignored(tmp_path: Path, metadata: bytes) -> None:
    path = downloaded(tmp_path / "x", OTHER)
    (beside,) = path.parent.rglob("*.metadata")
    beside.write_bytes(metadata)
    assert known_sha256(path) is None


def test_blob_without_a_link_has_no_known_hash(tmp_path: Path) -> None:
    cached(tmp_path, OTHER)
    assert known_sha256(tmp_path / "blobs" / OTHER) is None


def test_cached_file_is_read_on_request(tmp_path: Path) -> None:
    (source,) = found(plan_of(cached(tmp_path, SHA256)), "read")
    assert (source.sha256, source.sha256_from, source.blake3) == (SHA256, "read", None)


def test_cached_file_that_differs_from_its_published_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"sha256 is {SHA256}, but {OTHER} is published"):
        found(plan_of(cached(tmp_path, OTHER)), "read")


def large(folder: Path, n: int, pieces: int = 8) -> list[Path]:
    """Write files of several pieces, each with a tensor and other bytes."""
    paths = [folder / f"model-{i}" for i in range(n)]
    for i, path in enumerate(paths):
        others = np.random.default_rng(i).bytes((pieces << 20) - len(CONTENT))
        path.write_bytes(CONTENT + others)
    return paths


class Hashing:
    """Hashes the sources of a plan and records the pieces that are read."""

    def __init__(self, plan: Plan, monkeypatch: pytest.MonkeyPatch, first: int | None = 0) -> None:
        self.at: list[tuple[str, int]] = []
        read = ShardFile.read

        def recorded(file: ShardFile, offset: int, into: U8) -> None:
            read(file, offset, into)
            if len(into) == source_hashes.PIECE:
                self.at.append((file.path.name, offset >> 20))

        monkeypatch.setattr(ShardFile, "read", recorded)
        monkeypatch.setattr(source_hashes, "AHEAD", 3 << 20)
        self.digests = SourceDigests(work_of(plan), "read", first)

    def advance(self) -> tuple[str, int]:
        """Hash as far as possible; return the last piece that was read."""
        while self.digests.step(np.empty(source_hashes.PIECE, np.uint8)):
            pass
        return self.at[-1]


@pytest.mark.slow
def test_hashing_is_at_most_the_limit_ahead_of_the_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(*large(tmp_path, 2))
    hashing = Hashing(plan, monkeypatch)
    readers = [t.source.file for t in plan.sources.values() if isinstance(t.source, Stored)]
    assert hashing.advance() == ("model-0", 3)
    readers[0].read((2 << 20) - 1, np.empty(1, np.uint8))
    assert hashing.advance() == ("model-0", 5)
    readers[0].read((8 << 20) - 1, np.empty(1, np.uint8))
    assert hashing.advance() == ("model-1", 3)
    readers[1].read((2 << 20) - 1, np.empty(1, np.uint8))
    hashing.digests.arrive(1)
    assert hashing.advance() == ("model-1", 5)
    hashing.digests.release()
    assert hashing.advance() == ("model-1", 7)
    assert hashing.at == [(f"model-{i}", piece) for i in (0, 1) for piece in range(8)]


@pytest.mark.slow
def test_hashing_of_a_resumed_run_starts_with_files_that_encoders_do_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing = Hashing(plan_of(*large(tmp_path, 3)), monkeypatch, first=1)
    assert hashing.advance() == ("model-1", 3)
    hashing.digests.release()
    hashing.advance()
    assert len(hashing.at) == 24


@pytest.mark.slow
def test_two_threads_hash_different_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = Hashing(plan_of(*large(tmp_path, 2)), monkeypatch)
    hashing.digests.release()
    read = ShardFile.read

    def read_while_another_hashes(file: ShardFile, offset: int, into: U8) -> None:
        if not hashing.at and file.path.name == "model-0":
            assert hashing.digests.step(np.empty(source_hashes.PIECE, np.uint8))
        read(file, offset, into)

    monkeypatch.setattr(ShardFile, "read", read_while_another_hashes)
    assert hashing.digests.step(np.empty(source_hashes.PIECE, np.uint8))
    assert hashing.at == [("model-1", 0), ("model-0", 0)]
    hashing.advance()
    for source in hashing.digests.sources():
        assert source.sha256 == hashlib.sha256((tmp_path / source.name).read_bytes()).hexdigest()


@pytest.mark.slow
def test_source_that_changes_during_a_run_is_reported_and_no_output_is_left(tmp_path: Path) -> None:
    plan = plan_of(*large(tmp_path, 2))
    path = tmp_path / "model-1"

    def touch(_: object) -> None:
        os.utime(path, (1, 1))

    with pytest.raises(CheckpointError, match=r"model-1: changed while it was read"):
        convert_plan(plan, tmp_path / "x.gguf", threads=1, progress=touch, manifest="auto")
    assert not (tmp_path / "x.gguf").exists()
    with pytest.raises(ConvertError, match="--restart"):
        convert_plan(plan, tmp_path / "x.gguf", threads=1, manifest="auto")


@pytest.mark.slow
def test_failed_read_while_hashing_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(*large(tmp_path, 1))
    read = ShardFile.read

    def failing(file: ShardFile, offset: int, into: U8) -> None:
        if offset >= 5 << 20:
            raise CheckpointError(f"{file.path}: read at byte {offset}: Input/output error")
        read(file, offset, into)

    monkeypatch.setattr(ShardFile, "read", failing)
    before = threading.active_count()
    with pytest.raises(CheckpointError, match=r"model-0: read at byte 5242880: Input"):
        convert_plan(plan, tmp_path / "x.gguf", threads=2, manifest="auto")
    assert threading.active_count() == before
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 9])
def test_hashes_do_not_depend_on_the_number_of_threads(tmp_path: Path, threads: int) -> None:
    plan = plan_of(*large(tmp_path, 5, pieces=2))
    out = tmp_path / "x.gguf"
    convert_plan(plan, out, threads=threads, manifest="auto")
    listed = {s["name"]: s["blake3"] for s in json.loads(manifest_path(out).read_text())["sources"]}
    assert listed == {p.name: blake3(p.read_bytes()).hexdigest() for p in tmp_path.glob("model-*")}


TINY = TINY_BOOKS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "hashed"),
    [
        ((), (False, True)),
        (("--source-hashes", "read"), (True, False)),
        (("--source-hashes", "none"), (False, False)),
        (("--no-manifest",), None),
    ],
)
def test_command_line_has_options_for_source_hashes(
    tmp_path: Path, options: tuple[str, ...], hashed: Any
) -> None:
    out = tmp_path / "x.gguf"
    command = ["convert", str(TINY), "-o", str(out), "-r", "q8_0", "--threads", "1", "-q"]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    if hashed is None:
        assert not manifest_path(out).exists()
        return
    manifest = json.loads(manifest_path(out).read_text())
    assert {(bool(s["sha256"]), bool(s["blake3"])) for s in manifest["sources"]} == {hashed}
