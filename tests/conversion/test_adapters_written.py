"""Conversions with adapters: same bytes, resumption, manifest, saved plans, verify."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from adapters import ADAPTERS, alone, changed, merged
from crashes import QUICK, at_call, dies, killed
from handmade import recipe
from inprocess import run
from places import REFERENCES

import dynquant
from dynquant.conversion.write import convert_plan
from dynquant.errors import AdapterError, ConvertError, PlanError, VerificationError

BASE = REFERENCES / "llama-2"
ADAPTER = ADAPTERS / "llama-2"
MIXED = recipe("Q8_0", "fallback: [F16]\nrules: [{role: [attn_q, ffn_up], type: Q4_0}]")


def plan(adapter: Path = ADAPTER, **options: Any) -> dynquant.Plan:
    return dynquant.make_plan(BASE, MIXED, merge_adapter=[adapter], **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "x.gguf"
    plan().write(out, threads=1)
    return out.read_bytes()


@pytest.mark.parametrize(("threads", "chunk"), [(1, 64), (2, 1000), (4, 1 << 20)])
def test_bytes_depend_on_neither_threads_nor_chunks(
    threads: int, chunk: int, expected: bytes, tmp_path: Path
) -> None:
    convert_plan(plan(), tmp_path / "x.gguf", threads=threads, chunk_bytes=chunk)
    assert (tmp_path / "x.gguf").read_bytes() == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_gguf_of_an_adapter_does_not_depend_on_threads(threads: int, tmp_path: Path) -> None:
    one = alone("qwen3moe", tmp_path / "a.gguf", threads=1, recipe="f16")
    other = alone("qwen3moe", tmp_path / "b.gguf", threads=threads, recipe="f16")
    assert one.read_bytes() == other.read_bytes()


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupted(made: dynquant.Plan, out: Path) -> None:
    """Interrupt a conversion in the middle; what is done is recorded at its end."""
    steady = {"threads": 1, "chunk_bytes": 512, "sync_seconds": 1e6}
    with at_call(("pwrite",), 60, interrupt), pytest.raises(KeyboardInterrupt):
        convert_plan(made, out, **steady)
    assert not out.exists()


def test_interrupted_conversion_resumes_to_the_same_bytes(expected: bytes, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    interrupted(plan(), out)
    result = convert_plan(plan(), out, threads=2)
    assert 0 < result.resumed_bytes < len(expected) / 2
    assert out.read_bytes() == expected


def test_killed_conversion_resumes_to_the_same_bytes(expected: bytes, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"

    def dying() -> None:
        with at_call(("replace",), 1, dies):
            convert_plan(plan(), out, **QUICK)

    assert killed(dying, lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT))
    assert not out.exists()
    assert convert_plan(plan(), out, threads=2).resumed_bytes > 0
    assert out.read_bytes() == expected


@pytest.mark.parametrize("part", ["adapter_config.json", "adapter_model.safetensors"])
def test_changed_adapter_is_noticed_by_a_resumed_run(part: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        if part == "adapter_model.safetensors":
            tensors["base_model.model.lm_head.lora_B.weight"][0, 0] += 1

    out = tmp_path / "x.gguf"
    interrupted(plan(), out)
    alpha = {"lora_alpha": 7} if part == "adapter_config.json" else {}
    other = changed("llama-2", tmp_path / "llama-2", change, **alpha)
    with pytest.raises(ConvertError, match=r"--restart"):
        convert_plan(plan(other), out, threads=2)


def test_manifest_records_the_adapter(tmp_path: Path) -> None:
    second = changed("llama-2", tmp_path / "second")
    merged("llama-2", tmp_path / "x.gguf", ADAPTER, second, manifest="read")
    manifest = dynquant.read_manifest(tmp_path / "x.gguf")
    assert [a.name for a in manifest.merged_adapters] == ["llama-2", "second"]
    names = ["model.safetensors", "adapter_model.safetensors", "adapter_model.safetensors"]
    assert sorted(s.name for s in manifest.sources) == sorted(names)
    hashes = {s.sha256 for s in manifest.sources}
    assert {a.sha256 for a in manifest.merged_adapters} <= hashes


def test_manifest_without_adapters_lists_none(tmp_path: Path) -> None:
    merged("llama-2", tmp_path / "x.gguf")
    assert dynquant.read_manifest(tmp_path / "x.gguf").merged_adapters == []


def test_saved_plan_is_carried_out_with_its_adapter(expected: bytes, tmp_path: Path) -> None:
    plan().save(tmp_path / "p.json")
    again = dynquant.load_plan(tmp_path / "p.json", BASE, merge_adapter=[ADAPTER])
    again.write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == expected


def test_saved_plan_refuses_a_missing_or_another_adapter(tmp_path: Path) -> None:
    plan().save(tmp_path / "p.json")
    with pytest.raises(PlanError, match=r"made with the merged adapters llama-2; give them"):
        dynquant.load_plan(tmp_path / "p.json", BASE)
    other = changed("llama-2", tmp_path / "other", lora_alpha=9)
    with pytest.raises(PlanError, match=r"dynquant\.merged_adapters"):
        dynquant.load_plan(tmp_path / "p.json", BASE, merge_adapter=[other])
    dynquant.make_plan(BASE, MIXED).save(tmp_path / "q.json")
    with pytest.raises(PlanError, match="was made without merged adapters"):
        dynquant.load_plan(tmp_path / "q.json", BASE, merge_adapter=[ADAPTER])


def test_saved_plan_of_an_adapter_needs_its_base(tmp_path: Path) -> None:
    whole = dynquant.make_plan(ADAPTER, "f16", base=BASE)
    whole.save(tmp_path / "p.json")
    whole.write(tmp_path / "a.gguf")
    dynquant.load_plan(tmp_path / "p.json", ADAPTER, base=BASE).write(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(AdapterError, match=r"is an adapter; name the model"):
        dynquant.load_plan(tmp_path / "p.json", ADAPTER)


def test_file_is_verified_against_its_base_and_adapter(tmp_path: Path) -> None:
    out = merged("llama-2", tmp_path / "x.gguf", ADAPTER)
    found = dynquant.verify(out, BASE, merge_adapter=[ADAPTER], tensors="*")
    assert found.is_sound
    assert any("58,016 of 58,016 weights" in line for line in found.checked)
    with pytest.raises(VerificationError, match=r"merged adapters: llama-2; name these"):
        dynquant.verify(out, BASE)
    other = changed("llama-2", tmp_path / "other", lora_alpha=9)
    with pytest.raises(VerificationError, match=r"merged adapters: llama-2; name these"):
        dynquant.verify(out, BASE, merge_adapter=[other])
    plain = merged("llama-2", tmp_path / "plain.gguf")
    with pytest.raises(VerificationError, match=r"made without adapters; remove --merge-adapter"):
        dynquant.verify(plain, BASE, merge_adapter=[ADAPTER])


def test_gguf_of_an_adapter_is_verified_against_the_adapter(tmp_path: Path) -> None:
    out = alone("gpt2", tmp_path / "x.gguf", recipe="q8_0")
    base = REFERENCES / "gpt2"
    assert dynquant.verify(out, ADAPTERS / "gpt2", base=base, tensors="*").is_sound

    def change(tensors: dict[str, Any]) -> None:
        tensors["base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"][3] += 1

    other = changed("gpt2", tmp_path / "other", change)
    assert not dynquant.verify(out, other, base=base, tensors="*").is_sound


def test_command_line_merges_converts_and_verifies(tmp_path: Path) -> None:
    out, lora = tmp_path / "x.gguf", tmp_path / "lora.gguf"
    merging = ("--merge-adapter", ADAPTER)
    assert run("convert", BASE, *merging, "-r", "f32", "-o", out).code == 0
    assert out.read_bytes() == merged("llama-2", tmp_path / "y.gguf", ADAPTER).read_bytes()
    assert run("verify", out, "--against", BASE, *merging).code == 0
    assert run("convert", ADAPTER, "--base", BASE, "-o", lora).code == 0
    assert lora.read_bytes() == alone("llama-2", tmp_path / "z.gguf").read_bytes()
    assert run("verify", lora, "--against", ADAPTER, "--base", BASE).code == 0
    planned = run("plan", BASE, *merging, "-r", "f32", "--json")
    assert json.loads(planned.out)["file_bytes"] == out.stat().st_size
    planned = run("plan", ADAPTER, "--base", BASE, "--json")
    assert json.loads(planned.out)["file_bytes"] == lora.stat().st_size
    assert run("verify", out, *merging).code == 2


def test_output_does_not_replace_the_settings_of_an_adapter(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ADAPTER, tmp_path / "a"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        before = (folder / name).read_bytes()
        with pytest.raises(ConvertError):
            merged("llama-2", folder / name, folder, force=True)
        assert (folder / name).read_bytes() == before
