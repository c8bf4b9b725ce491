"""Manifests are correct; the oracles are gguf, hashlib, xxhash and jsonschema."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import pytest
import xxhash
from blake3 import blake3
from handmade import DOWN, KEYS, model, names, recipe, small_tensors, stored_tensor, weights
from imatrices import write_counted
from places import DATA
from typer.testing import CliRunner

from dynquant.arch.base import ModelTensor
from dynquant.cli import app
from dynquant.conversion import write
from dynquant.conversion.manifest import (
    find_manifest,
    manifest_path,
    manifest_schema,
    parse_manifest,
    read_manifest,
)
from dynquant.conversion.provenance import manifest_of
from dynquant.conversion.source_hashes import SourceDigests
from dynquant.conversion.work import work_of
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError, ManifestError
from dynquant.importance.imatrix import read_imatrix
from dynquant.keys import string
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.shards import Split
from dynquant.quants.error import TensorError
from dynquant.recipe.loader import load_recipe

VALIDATOR = jsonschema.Draft202012Validator(manifest_schema())
SPLIT = Split(max_tensors=3)


def stored_plan(folder: Path, split: Split | None = None, default: str = "Q8_0") -> Plan:
    """Plan the small model with three tensors from files, two of them from the same file."""
    shapes = {"blk.1.ffn_up.weight": (50, 256), "blk.1.attn_q.weight": (70, 256)}
    stored = [
        stored_tensor(folder / f"model-{i}", name, weights(*shape, seed=i))
        for i, (name, shape) in enumerate(shapes.items())
    ]
    again = ModelTensor("blk.1.attn_k.weight", stored[0].source)
    return make_plan(model(*stored, again, *small_tensors()), recipe(default), split=split)


def made(plan: Plan, out: Path, **options: Any) -> dict[str, Any]:
    """Convert, and return the parsed manifest."""
    convert_plan(plan, out, **({"threads": 2, "manifest": "auto"} | options))
    return json.loads(manifest_path(out).read_text())


@cache
def example() -> str:
    """Return a manifest with all parts that a manifest can have."""
    found = json.loads((DATA / "manifest.json").read_text())
    return json.dumps(found)


@pytest.mark.slow
@pytest.mark.parametrize("split", [None, SPLIT])
def test_hashes_and_offsets_are_those_of_the_finished_files(
    tmp_path: Path, split: Split | None
) -> None:
    manifest = made(stored_plan(tmp_path, split), tmp_path / "x.gguf", chunk_bytes=4096)
    files = manifest["output"]["files"]
    assert [f["name"] for f in files] == [n for n in names(tmp_path) if n.endswith(".gguf")]
    listed = iter(manifest["tensors"])
    for number, file in enumerate(files):
        content = (tmp_path / file["name"]).read_bytes()
        assert file["bytes"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        for tensor in gguf.GGUFReader(tmp_path / file["name"]).tensors:
            found = next(listed)
            assert (found["name"], found["file"]) == (tensor.name, number)
            assert found["shape"][::-1] == tensor.shape.tolist()
            assert found["type"] == tensor.tensor_type.name
            assert (found["offset"], found["bytes"]) == (tensor.data_offset, tensor.n_bytes)
            assert found["xxh64"] == xxhash.xxh64_hexdigest(tensor.data.tobytes())
    assert next(listed, None) is None


@pytest.mark.parametrize("how", ["auto", "read"])
def test_each_source_file_is_listed_once_with_its_hash(tmp_path: Path, how: str) -> None:
    manifest = made(stored_plan(tmp_path), tmp_path / "x.gguf", manifest=how)
    assert [s["name"] for s in manifest["sources"]] == ["model-0", "model-1"]
    for source in manifest["sources"]:
        content = (tmp_path / source["name"]).read_bytes()
        assert source["bytes"] == len(content)
        assert source["header_sha256"] == hashlib.sha256(content).hexdigest()
        sha256, from_bytes = hashlib.sha256(content).hexdigest(), blake3(content).hexdigest()
        wanted = (sha256, "read", None) if how == "read" else (None, None, from_bytes)
        assert (source["sha256"], source["sha256_from"], source["blake3"]) == wanted


def test_sources_are_listed_even_without_hashes(tmp_path: Path) -> None:
    manifest = made(stored_plan(tmp_path), tmp_path / "x.gguf", manifest="none")
    hashes = [(s["sha256"], s["sha256_from"], s["blake3"]) for s in manifest["sources"]]
    assert hashes == [(None, None, None)] * 2


def test_totals_are_those_of_the_tensors(tmp_path: Path) -> None:
    output = made(stored_plan(tmp_path), tmp_path / "x.gguf")["output"]
    tensors = gguf.GGUFReader(tmp_path / "x.gguf").tensors
    n_bytes = sum(int(t.n_bytes) for t in tensors)
    n_weights = sum(int(t.n_elements) for t in tensors)
    assert (output["tensor_bytes"], output["weights"]) == (n_bytes, n_weights)
    assert output["bits_per_weight"] == pytest.approx(8 * n_bytes / n_weights)
    assert output["type_counts"] == {"Q8_0": 7, "F32": 2}


def text_of(plan: Plan, out: Path, **options: Any) -> str:
    made(plan, out, **options)
    return manifest_path(out).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "chunk_bytes"), [(1, 1 << 20), (7, 3000)])
def test_manifest_does_not_depend_on_threads_chunks_or_folder(
    tmp_path: Path, threads: int, chunk_bytes: int
) -> None:
    found = set[str]()
    for folder, options in (
        ("a", {}),
        ("b/c", {"threads": threads, "chunk_bytes": chunk_bytes}),
    ):
        (tmp_path / folder).mkdir(parents=True)
        plan = stored_plan(tmp_path / folder, SPLIT)
        found.add(text_of(plan, tmp_path / folder / "x.gguf", **options))
    (text,) = found
    assert str(tmp_path) not in text
    assert text.endswith("}\n") and "\r" not in text


def test_recipe_in_another_folder_gives_the_same_manifest(tmp_path: Path) -> None:
    found = set[str]()
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        (folder / "base.yaml").write_text(
            "default: F16\nrules: [{role: ffn_down, type: Q4_0}, {role: output_norm, drop: true}]\n"
        )
        (folder / "mine.yaml").write_text("extends: base.yaml\ndefault: Q8_0\n")
        plan = make_plan(model(), load_recipe(folder / "mine.yaml"))
        found.add(text_of(plan, folder / "x.gguf"))
    (text,) = found
    manifest = json.loads(text)
    assert str(tmp_path) not in text
    assert manifest["recipe"]["text"] == "extends: base.yaml\ndefault: Q8_0\n"
    assert manifest["recipe"]["extends"] == [(tmp_path / "here" / "base.yaml").read_text()]
    rules = {t["name"]: t["rule"] for t in manifest["tensors"]}
    assert (rules[DOWN], rules["token_embd.weight"]) == ("base.yaml:2", "mine.yaml:2 default")
    assert manifest["ignored"] == {"output_norm.weight": "dropped by base.yaml:2"}


def test_recipe_hash_is_that_of_its_texts_and_of_the_key(tmp_path: Path) -> None:
    manifest = made(stored_plan(tmp_path), tmp_path / "x.gguf")["recipe"]
    texts = "\0".join((manifest["text"], *manifest["extends"]))
    assert manifest["sha256"] == hashlib.sha256(texts.encode()).hexdigest()
    key = gguf.GGUFReader(tmp_path / "x.gguf").fields["dynquant.recipe_sha256"].contents()
    assert manifest["sha256"] == key


class StopError(Exception):
    """Interrupts a run."""


@pytest.mark.slow
def test_resumed_run_writes_the_same_manifest(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    plan = stored_plan(tmp_path, SPLIT)
    whole = text_of(plan, tmp_path / "whole" / "x.gguf")

    def stop(progress: write.Progress) -> None:
        if progress.bytes_done > progress.bytes_total // 2:
            raise StopError

    with pytest.raises(StopError):
        made(plan, tmp_path / "x.gguf", progress=stop, threads=1)
    assert "x.gguf.journal" in names(tmp_path)
    resumed = convert_plan(plan, tmp_path / "x.gguf", threads=2, manifest="auto").resumed_bytes
    assert resumed > 0
    assert manifest_path(tmp_path / "x.gguf").read_text() == whole


def test_imatrix_is_recorded_without_its_folder(tmp_path: Path) -> None:
    path = write_counted(tmp_path / "i.gguf", {DOWN: (weights(1, 512) ** 2, [1])})
    imatrix = read_imatrix(path)
    plan = make_plan(model(), recipe("Q4_0"), imatrix=imatrix)
    manifest = made(plan, tmp_path / "x.gguf")
    assert manifest["importance"] == {
        "file": "i.gguf",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "datasets": list(imatrix.datasets),
        "chunks": imatrix.chunk_count,
        "shrink": 64,
        "unseen": "mean",
    }
    assert {t["name"]: t["importance"] for t in manifest["tensors"]}[DOWN] == "yes"


def test_repository_is_taken_from_the_keys_of_a_model_from_the_hub(tmp_path: Path) -> None:
    keys = {
        "dynquant.source": string("hf://org/model"),
        "dynquant.source_revision": string("0123456789" * 4),
    }
    plan = make_plan(replace(model(), keys=KEYS | keys), recipe())
    found = made(plan, tmp_path / "x.gguf")["model"]
    assert found == {"repository": "hf://org/model", "commit": "0123456789" * 4, "mla": None}


@pytest.mark.parametrize("role", ["attn_k_b", "attn_kv_b"])
def test_layout_of_latent_attention_is_recorded(tmp_path: Path, role: str) -> None:
    tensor = stored_tensor(tmp_path / "w", f"blk.0.{role}.weight", weights(5, 256))
    found = made(make_plan(model(tensor), recipe()), tmp_path / "x.gguf")["model"]
    assert found["mla"] == {"attn_k_b": "split", "attn_kv_b": "merged"}[role]


def test_errors_are_recorded_with_six_digits(tmp_path: Path) -> None:
    plan = stored_plan(tmp_path)
    done = convert_plan(plan, tmp_path / "x.gguf", threads=1)
    n = len(plan.tensors)
    first, _, third = (t.name for t in plan.tensors[:3])
    errors = {
        first: TensorError(1.23456789e-5, -1e-17, 0.25),
        third: TensorError(float("nan"), 0, 0),
    }
    work = work_of(plan)
    sources = SourceDigests(work, "none", None).sources()
    found = manifest_of(replace(done, errors=errors), work, sources)
    recorded = found.model_dump()["tensors"]
    assert recorded[0]["error"] == {"weighted": 1.23457e-5, "one_minus_cos2": 0.0, "max": 0.25}
    assert [t["error"] for t in recorded[1:]] == [None] * (n - 1)


def test_names_that_are_not_utf8_are_recorded_with_escapes(tmp_path: Path) -> None:
    stored = stored_tensor(tmp_path / os.fsdecode(b"w\xff"), "a.weight", weights(5, 256))
    plan = make_plan(model(stored), recipe())
    manifest = made(plan, tmp_path / os.fsdecode(b"x\xff.gguf"))
    assert manifest["sources"][0]["name"] == "w\\udcff"
    assert manifest["output"]["files"][0]["name"] == "x\\udcff.gguf"


def test_no_manifest_is_written_unless_requested(tmp_path: Path) -> None:
    convert_plan(stored_plan(tmp_path), tmp_path / "x.gguf", threads=1)
    assert names(tmp_path) == ["model-0", "model-1", "x.gguf"]


@pytest.mark.parametrize("how", [None, "auto"])
def test_existing_manifest_is_kept_without_force(tmp_path: Path, how: Any) -> None:
    there = manifest_path(tmp_path / "x.gguf")
    there.write_text("mine")
    with pytest.raises(ConvertError, match=r"manifest\.json: exists; replace it with --force"):
        convert_plan(stored_plan(tmp_path), tmp_path / "x.gguf", threads=1, manifest=how)
    assert there.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("how", [None, "auto"])
def test_replaced_file_does_not_keep_its_manifest(tmp_path: Path, how: Any) -> None:
    plan, out = stored_plan(tmp_path), tmp_path / "x.gguf"
    made(stored_plan(tmp_path, default="F16"), out)
    convert_plan(plan, out, threads=1, manifest=how, force=True)
    if how is None:
        assert not manifest_path(out).exists()
    else:
        (file,) = read_manifest(manifest_path(out)).output.files
        assert file.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()


@pytest.mark.slow
def test_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(manifest_schema())


@pytest.mark.slow
def test_written_manifest_is_valid_and_reads_back(tmp_path: Path) -> None:
    for folder, plan in (("a", stored_plan(tmp_path)), ("b", stored_plan(tmp_path, SPLIT))):
        (tmp_path / folder).mkdir()
        manifest = made(plan, tmp_path / folder / "x.gguf")
        assert [e.message for e in VALIDATOR.iter_errors(manifest)] == []
        found = read_manifest(find_manifest(tmp_path / folder / "x.gguf"))
        assert found.model_dump() == manifest


def test_manifest_with_all_parts_is_valid() -> None:
    assert [e.message for e in VALIDATOR.iter_errors(json.loads(example()))] == []
    parse_manifest(example().encode(), "m.json")


def test_manifest_is_found_from_any_shard_and_a_missing_one_is_named(tmp_path: Path) -> None:
    made(stored_plan(tmp_path, SPLIT), tmp_path / "x.gguf")
    for name in names(tmp_path):
        if name.endswith(".gguf"):
            assert find_manifest(tmp_path / name) == tmp_path / "x.gguf.manifest.json"
    with pytest.raises(ManifestError, match=r"y\.gguf\.manifest\.json: not found; "):
        find_manifest(tmp_path / "y-00001-of-00002.gguf")


def changed(*path: Any, to: Any) -> bytes:
    """Return the example with one value replaced; to=... removes the key."""
    manifest = json.loads(example())
    *outer, last = path
    inner = manifest
    for key in outer:
        inner = inner[key]
    if to is ...:
        del inner[last]
    else:
        inner[last] = to
    return json.dumps(manifest).encode()


FORM: dict[str, tuple[bytes, str]] = {
    "a key is missing": (changed("effort", to=...), "'effort' is missing"),
    "a key too many": (
        changed("output", "path", to="/"),
        "'output.path' is not part of a manifest",
    ),
    "a number as text": (changed("output", "weights", to="9"), "'output.weights' is '9'"),
    "a text as number": (changed("recipe", "name", to=9), "'recipe.name' is 9"),
    "true as a number": (changed("output", "weights", to=True), "'output.weights' is True"),
    "a negative size": (changed("tensors", 0, "bytes", to=-1), r"'tensors\.0\.bytes' is -1"),
    "a huge offset": (changed("tensors", 0, "offset", to=1 << 70), "'tensors.0.offset' is 1180"),
    "no hash": (changed("tensors", 0, "xxh64", to="0" * 15), r"'tensors\.0\.xxh64' is '0000"),
    "a path up": (changed("output", "files", 0, "name", to="../x"), r"files\.0\.name' is '\.\./x'"),
    "a path down": (changed("output", "files", 0, "name", to="a/x"), r"files\.0\.name' is 'a/x'"),
    "a whole path": (changed("sources", 0, "name", to="/etc/x"), r"sources\.0\.name' is '/etc/x'"),
    "the folder": (changed("output", "files", 0, "name", to=".."), r"files\.0\.name' is '\.\.'"),
    "a zero byte": (changed("output", "files", 0, "name", to="a\0"), r"files\.0\.name' is 'a"),
    "no files": (changed("output", "files", to=[]), r"'output\.files' is \[\]"),
    "a list": (changed("recipe", to=[]), r"'recipe' is \[\]"),
    "another effort": (changed("effort", to="most"), "'effort' is 'most'"),
}


@pytest.mark.parametrize("why", FORM)
def test_reader_refuses_manifests_that_the_schema_refuses_and_names_the_key(why: str) -> None:
    content, message = FORM[why]
    assert not VALIDATOR.is_valid(json.loads(content))
    with pytest.raises(ManifestError, match=f"^m.json: .*{message}"):
        parse_manifest(content, "m.json")


OTHERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "m.json: not JSON: "),
    "no text": (b"\xff\xfe\x80", "m.json: not JSON: "),
    "half of it": (example().encode()[:1000], "m.json: not JSON: "),
    "a number": (b"1", "m.json: not a manifest of dynquant"),
    "another object": (b"{}", "m.json: not a manifest of dynquant"),
    "depth": (b'{"manifest":' * 100_000, "m.json: not JSON: "),
    "lists": (b"[" * 1_000_000, "m.json: not JSON: "),
    "a number of a million digits": (b'{"manifest":' + b"9" * 1_000_000 + b"}", "m.json: not JSON"),
    "a later version": (
        b'{"manifest": 2}',
        "m.json: is a manifest of version 2; this dynquant reads version 1",
    ),
    "a key twice": (b'{"manifest": 1, "manifest": 1}', "m.json: 'manifest' appears twice"),
    "no number": (
        changed("output", "bits_per_weight", to=float("nan")),
        "bits_per_weight' is nan, but should be a finite number",
    ),
    "too large": (
        changed("tensors", 0, "error", "max", to=1e308).replace(b"e+308", b"e999"),
        "finite",
    ),
    "half a character": (changed("effort", to="\ud800"), "m.json: "),
    "a tensor twice": (
        changed("tensors", to=json.loads(example())["tensors"] * 2),
        "m.json: tensor .* is listed 2 times",
    ),
    "a file twice": (
        changed("output", "files", to=json.loads(example())["output"]["files"] * 2),
        "m.json: 'x.gguf' is listed 2 times",
    ),
    "no such file": (changed("tensors", 0, "file", to=1), "m.json: tensor .* is in file 1, of 1"),
    "behind the end": (changed("tensors", 0, "offset", to=1 << 60), "ends behind its file"),
    "another total": (changed("output", "tensor_bytes", to=5), "tensor_bytes is 5, the tensors"),
}


@pytest.mark.parametrize("why", OTHERS)
def test_invalid_or_contradictory_manifest_is_refused(why: str) -> None:
    content, message = OTHERS[why]
    with pytest.raises(ManifestError, match=message):
        parse_manifest(content, "m.json")


def test_a_thousand_faults_are_reported_in_a_few_lines() -> None:
    with pytest.raises(ManifestError) as e:
        parse_manifest(changed("recipe", "extends", to=[1] * 1000), "m.json")
    assert len(e.value.messages) == 11
    assert e.value.messages[-1] == "m.json: 990 more faults"


def test_missing_irregular_or_too_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf.manifest.json"
    with pytest.raises(ManifestError, match="cannot be read: No such file"):
        read_manifest(path)
    os.mkfifo(path)
    with pytest.raises(
        ManifestError, match="cannot be read: a pipe, a socket or a device, not a regular file"
    ):
        read_manifest(path)
    path.unlink()
    path.write_bytes(b"")
    os.truncate(path, 1 << 40)
    with pytest.raises(ManifestError, match="1099511627776 bytes; at most 67108864 are read"):
        read_manifest(path)


@pytest.mark.slow
def test_command_prints_schema_and_manifest(tmp_path: Path) -> None:
    text = text_of(stored_plan(tmp_path), tmp_path / "x.gguf")
    runner = CliRunner()
    assert json.loads(runner.invoke(app, ["manifest", "--schema"]).output) == manifest_schema()
    assert runner.invoke(app, ["manifest", str(tmp_path / "x.gguf")]).output == text


def test_plan_without_source_files_has_no_source_hashes() -> None:
    assert SourceDigests(work_of(make_plan(model(), recipe())), "read", 0).sources() == []
