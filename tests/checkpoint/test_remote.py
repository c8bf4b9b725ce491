"""Models elsewhere, read by ranges or file by file: from a hub on loopback, and fsspec's memory://.

Oracle: the conversion of the same folder on this machine. The hub records what it sends.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from ggufs import tensors_of
from tiny_hub import COMMIT, Hub, Serving
from typer.testing import CliRunner

import dynquant
from dynquant.arch.load import Fetch
from dynquant.checkpoint.hub import HubName
from dynquant.checkpoint.remote import hub_ranges, remote_file
from dynquant.checkpoint.remote.hub_ranges import HubRanges
from dynquant.checkpoint.remote.remote_file import RemoteFile
from dynquant.cli import app
from dynquant.conversion import file_order
from dynquant.conversion.engine import Progress
from dynquant.conversion.parts.join import join_parts
from dynquant.conversion.parts.run import convert_part
from dynquant.conversion.parts.share import Part
from dynquant.conversion.remote_sources import copies_beside, sources_path
from dynquant.conversion.work import work_of
from dynquant.conversion.write import convert_plan
from dynquant.errors import CheckpointError, ConvertError

pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")

MODEL = "hf://tiny/llama"
WEIGHTS = "model.safetensors"
OTHER_COMMIT = "2" * 40
HEADERS = 1 << 17
"""Bytes that headers of tiny files may need: two requests."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(load_reference("llama-2").folder, tmp_path / "repository")


@pytest.fixture
def hub(folder: Path) -> Hub:
    return Hub({"tiny/llama": folder}, is_large=True)


@pytest.fixture
def serving(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(hub_ranges, "WAIT", 0.001)
    monkeypatch.setattr(remote_file, "WAIT", 0.001)
    with Serving(hub) as served:
        served.take_over(monkeypatch, tmp_path)
        yield served


def converted(out: Path, model: str | Path = MODEL, **options: Any) -> dict[str, Any]:
    """Convert in Q8_0, and return the output's tensors."""
    recipe = options.pop("recipe", "q8_0")
    dynquant.convert(model, out, recipe=recipe, threads=2, force=True, **options)
    return tensors_of(out)


def streamed(out: Path, **options: Any) -> dict[str, Any]:
    return converted(out, fetch="stream", **options)


def local(folder: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
    return converted(tmp_path / "local.gguf", folder, **options)


def stored_below(folder: Path) -> int:
    """Return the bytes of weights in all files of a folder."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(p.stat().st_size for p in files if p.stat().st_size > 100_000)


def data_bytes(folder: Path) -> int:
    """Return the bytes of all tensors in a folder's safetensors, as their headers have them."""
    found = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            found += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return found


def in_files(model: Path, to: Path, n_files: int = 4) -> Path:
    """Copy a model into a folder with its weights in several files, tensors in turn."""
    shutil.copytree(model, to, ignore=shutil.ignore_patterns("*.safetensors*"))
    content = b"".join(p.read_bytes() for p in model.glob("*.safetensors"))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    names = {f"model-{n + 1:05}-of-{n_files:05}.safetensors": list(header)[n::n_files]
             for n in range(n_files)}  # fmt: skip
    for name, tensors in names.items():
        data, entries = b"", {}
        for tensor in tensors:
            begin, end = header[tensor]["data_offsets"]
            offsets = [len(data), len(data) + end - begin]
            entries[tensor] = header[tensor] | {"data_offsets": offsets}
            data += content[8 + length + begin : 8 + length + end]
        text = json.dumps(entries).encode()
        (to / name).write_bytes(struct.pack("<Q", len(text)) + text + data)
    weights = {tensor: name for name, tensors in names.items() for tensor in tensors}
    index = {"metadata": {}, "weight_map": weights}
    (to / "model.safetensors.index.json").write_text(json.dumps(index))
    return to


def sent(hub: Hub) -> int:
    return sum(n for _, _, n in hub.sent)


@pytest.mark.parametrize("fetch", ["stream", "shards"])
@pytest.mark.parametrize("family", ["llama-2", "qwen3", "gpt-oss", "deepseek-v3"])
@pytest.mark.slow
def test_model_elsewhere_gives_the_bytes_of_its_folder(
    family: str, fetch: Fetch, hub: Hub, serving: Serving, tmp_path: Path
) -> None:
    folder = hub.models["tiny/llama"] = load_reference(family).folder
    found = converted(tmp_path / "out.gguf", fetch=fetch, recipe="f16")
    assert found == local(folder, tmp_path, recipe="f16")
    assert not sources_path(tmp_path / "out.gguf").exists()


def test_streaming_stores_no_weights(serving: Serving, tmp_path: Path) -> None:
    streamed(tmp_path / "out.gguf")
    assert stored_below(tmp_path / "hub") == 0


@pytest.mark.parametrize("is_large", [True, False], ids=["another host", "the Hub itself"])
def test_every_byte_of_the_tensors_is_requested_once(
    is_large: bool, hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    hub.is_large = is_large
    plan = dynquant.make_plan(MODEL, "q8_0", fetch="stream")
    hub.sent.clear()
    plan.write(tmp_path / "out.gguf", threads=2, verify_sample=0)
    assert sent(hub) == data_bytes(folder)
    ranges = sorted((start, start + n) for _, start, n in hub.sent)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))


def test_plan_requests_headers_and_few_rows(
    hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    hub.models["tiny/llama"] = folder
    longer = {"model.embed_tokens.weight": 400}
    enlarge(folder / WEIGHTS, longer)
    done = CliRunner().invoke(app, ["plan", MODEL, "-r", "q8_0", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "llama"
    assert stored_below(tmp_path / "hub") == 0
    assert sent(hub) < HEADERS + 100_000 < (folder / WEIGHTS).stat().st_size


def enlarge(path: Path, factors: dict[str, int]) -> None:
    """Repeat the rows of tensors in a safetensors file, and in config.json those of the vocabulary.

    Nothing but the size of the file matters to the tests that use it.
    """
    from safetensors.numpy import load_file, save_file

    found = load_file(path)
    config = json.loads((path.parent / "config.json").read_text())
    for name, factor in factors.items():
        n = len(found[name]) * factor
        found[name] = np.resize(found[name], (n, *found[name].shape[1:]))
        found["lm_head.weight"] = np.resize(found["lm_head.weight"], found[name].shape)
        config["vocab_size"] = n
    save_file(found, path)
    (path.parent / "config.json").write_text(json.dumps(config))


def test_files_in_the_cache_are_not_requested(hub: Hub, serving: Serving, tmp_path: Path) -> None:
    first = converted(tmp_path / "a.gguf")
    hub.sent.clear()
    assert streamed(tmp_path / "b.gguf") == first
    assert hub.sent == []


def test_header_of_a_gguf_on_the_hub_is_read_without_the_file(
    hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    recipe = "f32"
    converted(tmp_path / "big.gguf", folder, recipe=recipe)
    with (tmp_path / "big.gguf").open("ab") as file:
        file.truncate(8 << 20)
    shutil.copy(tmp_path / "big.gguf", folder / "m.gguf")
    here = CliRunner().invoke(app, ["inspect", str(folder / "m.gguf"), "--tensors"])
    there = CliRunner().invoke(app, ["inspect", f"{MODEL}/m.gguf", "--tensors"])
    assert there.exit_code == 0, there.stderr
    assert there.stdout == here.stdout
    assert 0 < sent(hub) <= 1 << 20
    assert (
        dynquant.inspect(f"{MODEL}/m.gguf").tensors == dynquant.inspect(folder / "m.gguf").tensors
    )


def test_inspecting_a_model_names_what_to_do(serving: Serving) -> None:
    with pytest.raises(CheckpointError, match="name a GGUF of it"):
        dynquant.inspect(MODEL)


def test_gguf_on_the_hub_is_streamed(
    hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    dynquant.convert(
        folder, folder / "m.gguf", recipe="f32", split=dynquant.Split(None, 10), threads=2
    )
    first = min(p.name for p in folder.glob("m-*.gguf"))
    assert len(list(folder.glob("m-*.gguf"))) > 1
    found = converted(tmp_path / "out.gguf", f"{MODEL}/{first}", fetch="stream")
    assert found == local(folder, tmp_path)
    assert stored_below(tmp_path / "hub") == 0


def test_numbered_shards_without_an_index_are_streamed(
    serving: Serving, folder: Path, tmp_path: Path
) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    assert streamed(tmp_path / "out.gguf") == local(folder, tmp_path)


def test_token_reaches_the_hub_and_no_other_host(
    hub: Hub, serving: Serving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.gated.add("tiny/llama")
    hub.tokens.add("hf_opens")
    with pytest.raises(CheckpointError, match="is gated; request access"):
        streamed(tmp_path / "out.gguf")
    monkeypatch.setenv("HF_TOKEN", "hf_opens")
    streamed(tmp_path / "out.gguf")  # the other host refuses requests with a token
    hub.is_large = False
    streamed(tmp_path / "out.gguf")


TROUBLE = {
    "busy": ["429", "503", "429"],
    "connections that end": ["cut"] * 4,
    "answers that are too short": ["short", "short", "cut", "short"],
    "expired addresses": ["expired", "", "expired"],
    "all of them": ["503", "cut", "expired", "short", "429"] * 3,
}


@pytest.mark.parametrize("how", TROUBLE)
def test_trouble_on_the_way_changes_no_byte(
    how: str, hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    plan = dynquant.make_plan(MODEL, "q8_0", fetch="stream")
    hub.trouble.extend(TROUBLE[how])
    plan.write(tmp_path / "out.gguf", threads=2)
    assert not hub.trouble
    assert tensors_of(tmp_path / "out.gguf") == local(folder, tmp_path)


def test_header_is_read_in_spite_of_trouble(hub: Hub, serving: Serving) -> None:
    hub.trouble.extend(["503", "cut", "short"])
    assert dynquant.load_model(MODEL, fetch="stream").architecture == "llama"
    assert not hub.trouble


def test_server_that_stays_busy_is_an_error_with_one_line(
    hub: Hub, serving: Serving, tmp_path: Path
) -> None:
    plan = dynquant.make_plan(MODEL, "q8_0", fetch="stream")
    hub.trouble.extend(["503"] * 500)
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be fetched: .*503"):
        plan.write(tmp_path / "out.gguf", threads=1)
    assert not (tmp_path / "out.gguf").exists()


def test_server_that_always_ends_too_early_is_an_error(
    hub: Hub, serving: Serving, tmp_path: Path
) -> None:
    plan = dynquant.make_plan(MODEL, "q8_0", fetch="stream")
    hub.trouble.extend(["short"] * 5000)
    with pytest.raises(CheckpointError, match="answers of the server were too short"):
        plan.write(tmp_path / "out.gguf", threads=1)


def test_server_without_ranges_is_an_error_before_its_content_is_read(
    hub: Hub, serving: Serving
) -> None:
    hub.trouble.append("whole")
    with pytest.raises(CheckpointError, match="sends whole files only, no ranges; download"):
        dynquant.load_model(MODEL, fetch="stream")


def rewrite(path: Path, content: bytes) -> None:
    """Write a file, at another time."""
    path.write_bytes(content)
    there = path.stat()
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns + 10**9))


@pytest.mark.parametrize("change", ["content", "shorter", "longer"])
def test_file_that_changes_is_an_error_and_no_file_is_written(
    change: str, hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    plan = dynquant.make_plan(MODEL, "q8_0", fetch="stream")
    content = (folder / WEIGHTS).read_bytes()
    changed = {
        "content": content[:-4] + b"abcd",
        "shorter": content[: len(content) // 2],
        "longer": content + b"more",
    }
    hub.is_large = False  # the file's address stays the same
    rewrite(folder / WEIGHTS, changed[change])
    with pytest.raises(CheckpointError, match="changed while it was read: "):
        plan.write(tmp_path / "out.gguf", threads=2)
    assert not (tmp_path / "out.gguf").exists()


def test_file_that_changes_behind_an_expired_address_is_an_error(
    hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    plan = dynquant.make_plan(MODEL, "q8_0", fetch="stream")
    rewrite(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()[:-4] + b"abcd")
    hub.trouble.append("expired")
    with pytest.raises(CheckpointError, match="changed while it was read: its ETag was"):
        plan.write(tmp_path / "out.gguf", threads=1)


class KilledError(Exception):
    """Ends a conversion from within, as an interrupt does."""


def half(progress: Progress) -> None:
    if progress.bytes_done > progress.bytes_total // 2:
        raise KilledError


@pytest.mark.parametrize("fetch", ["stream", "shards"])
def test_interrupted_run_resumes_with_the_same_bytes(
    fetch: Fetch, hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    def run(progress: Callable[[Progress], None] | None) -> Any:
        plan = dynquant.make_plan(MODEL, "q8_0", fetch=fetch)
        hub.sent.clear()
        return convert_plan(
            plan,
            tmp_path / "out.gguf",
            threads=1,
            chunk_bytes=512,
            sync_seconds=0.001,
            verify_sample=0,
            progress=progress,
        )

    with pytest.raises(KilledError):
        run(half)
    copies = sources_path(tmp_path / "out.gguf")
    assert copies.exists() == (fetch == "shards")
    result = run(None)
    assert result.resumed_bytes > 0
    if fetch == "stream":
        assert sent(hub) < data_bytes(folder)
    else:
        assert hub.sent == []  # the copy of the first run is used
    assert not copies.exists()
    assert tensors_of(tmp_path / "out.gguf") == local(folder, tmp_path)


@pytest.mark.parametrize("fetch", ["stream", "shards"])
def test_parts_of_a_conversion_read_models_elsewhere(
    fetch: Fetch, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    plan = dynquant.make_plan(MODEL, "q8_0", fetch=fetch)
    out = tmp_path / "out.gguf"
    for number in (1, 2):
        convert_part(plan, out, Part(number, 2), threads=2)
    join_parts(plan, out, threads=2)
    assert tensors_of(out) == local(folder, tmp_path)
    assert not list(tmp_path.glob("*.sources"))


def test_run_of_another_commit_does_not_resume(hub: Hub, serving: Serving, tmp_path: Path) -> None:
    plan = dynquant.make_plan(MODEL, "q8_0", fetch="stream")
    with pytest.raises(KilledError):
        convert_plan(
            plan,
            tmp_path / "out.gguf",
            threads=1,
            chunk_bytes=512,
            sync_seconds=0.001,
            progress=half,
        )
    hub.revisions["main"] = OTHER_COMMIT
    with pytest.raises(ConvertError, match=f"commit was {COMMIT[:12]}… and is {OTHER_COMMIT[:12]}"):
        streamed(tmp_path / "out.gguf")


def test_copies_are_deleted_after_their_last_row(
    hub: Hub, serving: Serving, tmp_path: Path
) -> None:
    hub.models["tiny/llama"] = load_reference("qwen3").folder
    model = dynquant.load_model(MODEL, fetch="shards")
    work = work_of(dynquant.make_plan(model, "q8_0"))
    files = {f.path.name: f.stored for f in work.source_files}
    assert len(files) > 1
    copies = tmp_path / "copies"
    with copies_beside(work, copies):
        assert not copies.exists()
        for name, file in files.items():
            assert isinstance(file, RemoteFile)
            file.read(0, memoryview(bytearray(8)))
            assert [p.name for p in copies.glob("*.safetensors")] == [name]
            file.forget()
            assert not list(copies.glob("*.safetensors"))
        hub.sent.clear()
        file.read(8, memoryview(bytearray(8)))  # not copied again
        assert sent(hub) == 8
    assert not copies.exists()


def test_copies_are_used_one_after_the_other(
    hub: Hub, serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The experts of a layer lie in two files, and other tensors are made of rows of both."""
    folder = hub.models["tiny/llama"] = in_files(load_reference("qwen3moe").folder, tmp_path / "m")
    out = tmp_path / "out.gguf"
    downloads: list[list[str]] = []
    download = HubRanges.download

    def watched(self: HubRanges, into: Path) -> Path:
        path = download(self, into)
        downloads.append([p.name for p in into.glob("*.safetensors")])
        return path

    monkeypatch.setattr(HubRanges, "download", watched)
    found = converted(out, fetch="shards")
    assert found == local(folder, tmp_path)
    assert downloads == [[name] for name in sorted(p.name for p in folder.glob("*.safetensors"))]
    assert not sources_path(out).exists()


def test_killed_run_downloads_no_file_twice(
    hub: Hub, serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.models["tiny/llama"] = in_files(load_reference("qwen3moe").folder, tmp_path / "m")
    out = tmp_path / "out.gguf"
    used: list[str] = []
    download = HubRanges.download

    def watched(self: HubRanges, into: Path) -> Path:
        if used == names[:2]:
            raise KilledError
        path = download(self, into)
        used.append(path.name)
        return path

    def run() -> None:
        plan = dynquant.make_plan(MODEL, "q8_0", fetch="shards")
        used.clear()
        convert_plan(plan, out, threads=2, chunk_bytes=512)

    names = sorted(p.name for p in folder.glob("*.safetensors"))
    monkeypatch.setattr(HubRanges, "download", watched)
    with pytest.raises(KilledError):
        run()
    assert used == names[:2]
    run()
    assert used == names[2:]
    assert tensors_of(out) == local(folder, tmp_path)


def test_disk_without_room_for_a_copy_is_an_error(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_order, "free_bytes", lambda _: 1000)
    with pytest.raises(ConvertError, match=r"out\.gguf\.sources: a copy of a source file takes"):
        converted(tmp_path / "out.gguf", fetch="shards")
    assert not list(tmp_path.glob("out.gguf*"))


def test_damaged_copy_is_refused_and_removed(
    hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    hub.sha256 = "0" * 64
    with pytest.raises(CheckpointError, match="was downloaded, but its sha256 is "):
        converted(tmp_path / "out.gguf", fetch="shards")
    assert not list(sources_path(tmp_path / "out.gguf").glob("*.safetensors"))


def test_hashing_streamed_files_finds_content_that_differs_from_the_published_hash(
    hub: Hub, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    streamed(tmp_path / "out.gguf", manifest="read")
    hub.sha256 = "0" * 64
    with pytest.raises(CheckpointError, match=f"but {'0' * 64} is published for it"):
        streamed(tmp_path / "other.gguf", manifest="read")


@pytest.mark.parametrize(
    ("fetch", "hashes", "origin", "access"),
    [
        ("stream", "auto", "hub", "ranges"),
        ("stream", "read", "read", "ranges"),
        ("shards", "auto", "hub", "copy"),
        ("download", "read", "read", None),
    ],
)
def test_manifest_records_how_the_source_was_read(
    fetch: Fetch,
    hashes: Any,
    origin: str,
    access: str | None,
    serving: Serving,
    folder: Path,
    tmp_path: Path,
) -> None:
    converted(tmp_path / "out.gguf", fetch=fetch, manifest=hashes)
    (source,) = dynquant.read_manifest(tmp_path / "out.gguf").sources
    assert source.sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert (source.sha256_from, source.access) == (origin, access)


def test_file_that_the_hub_does_not_have_is_reported(serving: Serving) -> None:
    with pytest.raises(CheckpointError, match=r"^hf://tiny/llama@\w+/none.safetensors: cannot be"):
        HubRanges(HubName("tiny/llama", COMMIT), "none.safetensors")


def test_streaming_and_keeping_no_source_are_not_valid_together(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        ["convert", MODEL, "-o", "x.gguf", "-r", "f32", "--stream", "--keep-source", "none"],
    )
    assert done.exit_code == 2
    assert "--stream stores no file" in done.stderr


def test_command_streams(serving: Serving, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    arguments = ["convert", MODEL, "-o", str(out), "-r", "q8_0", "-q"]
    for more in (["--stream"], ["--keep-source", "none", "--force"]):
        done = CliRunner().invoke(app, [*arguments, *more])
        assert done.exit_code == 0, done.stderr
        assert stored_below(tmp_path / "hub") == 0
        assert tensors_of(out) == local(folder, tmp_path)


# URLs of fsspec


@pytest.fixture
def memory(folder: Path) -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(folder), "/bucket/llama", recursive=True)
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


@pytest.mark.parametrize("fetch", ["download", "stream", "shards"])
def test_model_at_a_url_gives_the_bytes_of_its_folder(
    fetch: Fetch, memory: Any, folder: Path, tmp_path: Path
) -> None:
    found = converted(tmp_path / "out.gguf", "memory://bucket/llama/", fetch=fetch)
    assert found == local(folder, tmp_path)
    (source,) = dynquant.read_manifest(tmp_path / "out.gguf").sources
    assert source.access == ("copy" if fetch == "shards" else "ranges")
    assert source.sha256 is None
    assert (source.blake3 is None) == (fetch != "shards")
    assert not sources_path(tmp_path / "out.gguf").exists()


def test_name_of_a_model_at_a_url_is_that_of_its_folder(memory: Any) -> None:
    model = dynquant.load_model("memory://bucket/llama")
    assert model.keys["general.name"].value == "Llama"


def test_gguf_at_a_url_is_read(memory: Any, folder: Path, tmp_path: Path) -> None:
    converted(tmp_path / "m.gguf", folder, recipe="f32")
    memory.put(str(tmp_path / "m.gguf"), "/bucket/m.gguf")
    url = "memory://bucket/m.gguf"
    assert dynquant.inspect(url).tensors == dynquant.inspect(tmp_path / "m.gguf").tensors
    assert converted(tmp_path / "out.gguf", url) == local(folder, tmp_path)


def test_file_at_a_url_that_changes_is_an_error(memory: Any, folder: Path, tmp_path: Path) -> None:
    plan = dynquant.make_plan("memory://bucket/llama", "q8_0")
    content = (folder / WEIGHTS).read_bytes()

    def change(progress: Progress) -> None:
        if progress.bytes_done == 0:
            memory.pipe_file(f"/bucket/llama/{WEIGHTS}", content)

    with pytest.raises(CheckpointError, match="changed while it was read"):
        plan.write(tmp_path / "out.gguf", threads=1, progress=change)
    assert not (tmp_path / "out.gguf").exists()


def test_missing_model_at_a_url_is_reported(memory: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^memory://bucket/none: not found; correct"):
        dynquant.load_model("memory://bucket/none")


def test_url_of_an_unknown_kind_is_reported() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(CheckpointError, match=r"^nowhere://x/y: cannot be read: ValueError: "):
        dynquant.load_model("nowhere://x/y")


def test_missing_library_is_reported_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(CheckpointError) as e:
        dynquant.load_model("s3://bucket/model")
    assert str(e.value) == (
        "s3://bucket/model: fsspec is not installed; pip install 'dynquant-gguf[remote]'"
    )


def test_missing_filesystem_is_reported_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(CheckpointError, match=r"^s3://bucket/model: Install s3fs to access S3"):
        dynquant.load_model("s3://bucket/model")
