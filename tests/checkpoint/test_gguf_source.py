"""A GGUF as the source gives the same output as the checkpoint.

Oracles: the gguf package writes the inputs, reads the outputs and decodes them; llama.cpp loads
them.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import FAMILIES, TINY_BOOKS, divergence, load_reference
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize
from ggufs import SCALARS, add, keys_of, tensors_of, write
from handmade import recipe, weights
from imatrices import write_legacy
from subsets import FAST_FAMILIES, slow_except

import dynquant
from dynquant.arch.load import load_model
from dynquant.conversion.write import convert_plan
from dynquant.errors import CheckpointError, ConvertError, DynquantError, PlanError, VocabError
from dynquant.plan.make import make_plan
from dynquant.quants import ALL
from dynquant.recipe.loader import Recipe, parse_recipe

MIXED = parse_recipe(
    """\
default: Q8_0
rules:
  - {role: [attn_v, token_embd], type: Q5_1, optional: true}
  - {role: [ffn_down, ffn_down_exps], layers: 0, type: Q4_0, optional: true}
  - {role: attn_output, type: F16, optional: true}
fallback: [F16]
""",
    "mixed.yaml",
    "mixed",
)
DOWN = "blk.0.ffn_down.weight"


def made(source: Path, out: Path, by: Recipe | str = "q8_0", **options: Any) -> Path:
    dynquant.convert(source, out, recipe=by, threads=2, **options)
    return out


def refused(source: Path, by: Recipe | None = None, **options: Any) -> tuple[str, ...]:
    with pytest.raises(PlanError) as e:
        make_plan(load_model(source), by or recipe(), **options)
    return e.value.messages


# ---- equal to the checkpoint ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, FAMILIES))
def test_conversion_through_an_f32_gguf_gives_the_same_bytes(family: str, tmp_path: Path) -> None:
    folder = load_reference(family).folder
    f32 = made(folder, tmp_path / "f32.gguf", "f32")
    direct = made(folder, tmp_path / "direct.gguf", MIXED)
    assert made(f32, tmp_path / "through.gguf", MIXED).read_bytes() == direct.read_bytes()


@pytest.mark.slow
def test_conversion_through_a_bf16_gguf_gives_the_same_bytes_for_bf16(tmp_path: Path) -> None:
    folder = load_reference(TINY_BOOKS).folder
    bf16 = made(folder, tmp_path / "bf16.gguf", "bf16")
    direct = made(folder, tmp_path / "direct.gguf", MIXED)
    assert made(bf16, tmp_path / "through.gguf", MIXED).read_bytes() == direct.read_bytes()


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_norms_of_any_float_type_become_f32(tmp_path: Path, stored: str) -> None:
    x = weights(64)
    source = write(tmp_path / "s.gguf", lambda w: add(w, "output_norm.weight", x, stored))
    found = tensors_of(made(source, tmp_path / "o.gguf"))["output_norm.weight"]
    ggml_type = GGMLQuantizationType[stored]
    exact = dequantize(quantize(x, ggml_type), ggml_type) if stored != "F32" else x
    assert found == ("F32", (64,), exact.tobytes())


# ---- keys ----------------------------------------------------------------------------------------


def with_every_key(writer: GGUFWriter) -> None:
    for type_, value in SCALARS.items():
        writer.add_key_value(f"llama.{type_.name}", value, type_)
        writer.add_key_value(f"other.{type_.name}s", [value] * 3, GGUFValueType.ARRAY, type_)
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "Ġb"])
    writer.add_key_value("llama.after_the_tokenizer", 1, GGUFValueType.UINT32)
    add(writer, DOWN, weights(2, 64))


def test_every_key_is_kept_with_its_type_and_order(tmp_path: Path) -> None:
    source = write(tmp_path / "s.gguf", with_every_key)
    found, theirs = keys_of(made(source, tmp_path / "o.gguf")), keys_of(source)
    assert {n: found[n] for n in theirs} == theirs
    assert [n for n in found if n in theirs] == list(theirs)
    ours = ("general.file_type", "general.quantization_version")
    assert {n for n in found if n not in theirs and not n.startswith("dynquant.")} == set(ours)


def test_empty_arrays_and_bytes_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    def text(content: bytes) -> bytes:
        return struct.pack("<Q", len(content)) + content

    cut = "né".encode()[:2]
    entries = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"handmade"),
        text(b"x.text") + struct.pack("<I", 8) + text(cut),
        text(b"x.texts") + struct.pack("<IIQ", 9, 8, 2) + text(cut) + text(b""),
        text(b"x.none") + struct.pack("<IIQ", 9, 5, 0),
    ]
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries)
    content += text(DOWN.encode()) + struct.pack("<IQQIQ", 2, 32, 1, 0, 0)
    source = tmp_path / "s.gguf"
    source.write_bytes(content + bytes(-len(content) % 32 + 128))
    out = made(source, tmp_path / "o.gguf").read_bytes()
    assert [e for e in entries if e not in out] == []


def test_keys_about_the_quantization_of_the_source_are_replaced(
    tmp_path: Path,
) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_file_type(1)
        writer.add_quantization_version(1)
        writer.add_string("quantize.imatrix.file", "/home/them/theirs.dat")
        writer.add_string("quantize.imatrix.dataset", "theirs.txt")
        writer.add_string("dynquant.imatrix_sha256", "0" * 64)
        writer.add_string("dynquant.recipe", "theirs")
        writer.add_string("dynquant.source", "hf://org/model")
        add(writer, DOWN, weights(2, 64))

    source = write(tmp_path / "s.gguf", fill)
    found = {n: v for n, (_, v) in keys_of(made(source, tmp_path / "o.gguf")).items()}
    assert found["general.file_type"] == 7
    assert found["general.quantization_version"] == 2
    assert found["dynquant.recipe"] == "q8_0"
    assert found["dynquant.source"] == "hf://org/model"
    assert not [n for n in found if "imatrix" in n]

    imatrix = write_legacy(tmp_path / "i.dat", {DOWN: np.ones(64, np.float32)})
    made(source, tmp_path / "i.gguf", imatrix=imatrix)
    found = {n: v for n, (_, v) in keys_of(tmp_path / "i.gguf").items()}
    assert found["quantize.imatrix.file"] == "i.dat"
    assert found["quantize.imatrix.dataset"] != "theirs.txt"


def test_a_source_with_another_alignment_gets_the_default_alignment(tmp_path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_custom_alignment(1024)
        for i in range(3):
            add(writer, f"blk.{i}.ffn_up.weight", weights(3, 32, seed=i))

    source = write(tmp_path / "s.gguf", fill)
    out = made(source, tmp_path / "o.gguf", "f32")
    assert tensors_of(out) == tensors_of(source)
    assert "general.alignment" not in keys_of(out)


# ---- blocks --------------------------------------------------------------------------------------


def with_blocks(writer: GGUFWriter) -> None:
    add(writer, "token_embd.weight", weights(5, 64), "F16")
    for i in range(4):
        add(writer, f"blk.{i}.ffn_down.weight", weights(3, 64, seed=i), "Q8_0")
        add(writer, f"blk.{i}.ffn_up.weight", weights(3, 64, seed=i), "Q4_0" if i > 1 else "Q8_0")


def test_blocks_of_the_same_type_are_copied_bit_for_bit(tmp_path: Path) -> None:
    # No encoder gives these blocks: all quants are equal, with a scale of 2^-4.
    blocks = np.tile(np.frombuffer(struct.pack("<e32b", 2**-4, *[3] * 32), np.uint8), (6, 2))
    q8_0 = GGMLQuantizationType.Q8_0
    source = write(tmp_path / "s.gguf", lambda w: w.add_tensor(DOWN, blocks, raw_dtype=q8_0))
    assert tensors_of(made(source, tmp_path / "o.gguf")) == tensors_of(source)
    assert tensors_of(source)[DOWN][2] == blocks.tobytes()


def test_all_other_types_for_blocks_are_refused_together_by_rule(tmp_path: Path) -> None:
    source = write(tmp_path / "s.gguf", with_blocks)
    by = recipe("Q4_1", "rules: [{role: ffn_up, layers: 0-1, type: Q8_0}]")
    assert refused(source, by) == (
        r"recipes/hand.yaml:1 default: Q4_1 for weights that are quantized already (Q8_0):"
        " blk.{0-3}.ffn_down.weight; use a GGUF in F16, BF16 or F32, or accept the loss"
        " (--allow-requantize)",
        "recipes/hand.yaml:1 default: Q4_1 for weights that are quantized already (Q4_0):"
        " blk.{2-3}.ffn_up.weight; use a GGUF in F16, BF16 or F32, or accept the loss"
        " (--allow-requantize)",
    )


@pytest.mark.parametrize("default", ["Q4_1", "F16", "F32"])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_blocks_are_requantized_if_allowed(tmp_path: Path, default: str, chunk_bytes: int) -> None:
    source = write(tmp_path / "s.gguf", with_blocks)
    plan = make_plan(load_model(source), recipe(default), allow_requantize=True)
    convert_plan(plan, tmp_path / "o.gguf", threads=2, chunk_bytes=chunk_bytes)
    found = tensors_of(tmp_path / "o.gguf")
    for there in GGUFReader(source).tensors:
        x = dequantize(there.data, there.tensor_type).astype(np.float32)
        wanted = dynquant.encode(x, default).tobytes()
        assert found[there.name] == (default, tuple(there.shape.tolist()), wanted)


def test_copied_blocks_need_no_importance(tmp_path: Path) -> None:
    x = weights(2, 256)
    importance = np.ones(256, np.float32)
    source = write(
        tmp_path / "s.gguf",
        lambda w: w.add_tensor(
            DOWN,
            dynquant.encode(x, "IQ2_XXS", importance),
            raw_dtype=GGMLQuantizationType.IQ2_XXS,
        ),
    )
    plan = make_plan(load_model(source), recipe("IQ2_XXS"))
    assert plan.unweighted == ()
    (message,) = refused(source, recipe("IQ2_XS"), allow_requantize=True)
    assert "IQ2_XS needs importance" in message


@pytest.mark.parametrize("type_", [np.int8, np.int16, np.int32, np.int64, np.float64])
def test_integers_and_doubles_are_kept(tmp_path: Path, type_: type) -> None:
    def fill(writer: GGUFWriter) -> None:
        add(writer, "blk.0.ffn_gate_tid2eid.weight", (100 * weights(9, 6)).astype(type_))
        add(writer, "rope.table", (100 * weights(7)).astype(type_))

    source = write(tmp_path / "s.gguf", fill)
    assert tensors_of(made(source, tmp_path / "o.gguf")) == tensors_of(source)


def test_all_unsupported_types_are_reported_together_with_their_numbers(tmp_path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        for i in range(3):
            blocks = np.zeros((2, 40), np.uint8)
            writer.add_tensor(f"blk.{i}.a.weight", blocks, raw_dtype=GGMLQuantizationType.Q8_1)
        blocks = np.zeros((2, 292), np.uint8)
        writer.add_tensor("b.weight", blocks, raw_dtype=GGMLQuantizationType.Q8_K)

    with pytest.raises(CheckpointError) as e:
        load_model(write(tmp_path / "s.gguf", fill))
    a, b = e.value.messages
    assert "blk.{0-2}.a.weight: stored as Q8_1 (ggml type 9), which is not supported" in a
    assert "b.weight: stored as Q8_K (ggml type 15), which is not supported" in b


@pytest.mark.slow
def test_every_type_that_can_be_encoded_can_be_read(tmp_path: Path) -> None:
    numbers = {t.value for t in GGMLQuantizationType}
    known = [t for t in ALL.values() if t.ggml_type in numbers]

    def fill(writer: GGUFWriter) -> None:
        for t in known:
            x = dynquant.encode(weights(2, 256), t, np.ones(256, np.float32))
            content = x.view(np.float32) if t.name == "F32" else x
            ggml_type = GGMLQuantizationType(t.ggml_type)
            writer.add_tensor(f"{t.name}.weight", content, raw_dtype=ggml_type)

    source = write(tmp_path / "s.gguf", fill)
    rules = [f"- {{name: {t.name}.weight, type: {t.name}}}" for t in known]
    by = recipe("F32", "rules:\n" + "\n".join(rules))
    assert tensors_of(made(source, tmp_path / "o.gguf", by)) == tensors_of(source)


def problems_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as e:
        load_model(path)
    return str(e.value)


def with_layers(writer: GGUFWriter) -> None:
    for i in range(3):
        add(writer, f"blk.{i}.ffn_down.weight", weights(3, 64, seed=i))


# ---- the input is not overwritten ----------------------------------------------------------------


def is_refused_as_output(out: Path, source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(ConvertError, match="a file of the model itself"):
        made(source, out, force=True)
    assert source.read_bytes() == before


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "s.gguf", with_layers)
    link, hard, folder = tmp_path / "link.gguf", tmp_path / "hard.gguf", tmp_path / "other"
    link.symlink_to(source)
    hard.hardlink_to(source)
    folder.symlink_to(tmp_path, target_is_directory=True)
    names = [source, link, hard, folder / "s.gguf", folder / ".." / tmp_path.name / "s.gguf"]
    for out in names:
        is_refused_as_output(out, source)
    for source_, out in combinations(names[:3], 2):
        is_refused_as_output(out, source_)


def test_a_source_named_like_an_unfinished_output_is_not_overwritten(tmp_path: Path) -> None:
    is_refused_as_output(tmp_path / "x.gguf", write(tmp_path / "x.gguf.part", with_layers))


# ---- files that are not models -------------------------------------------------------------------


def test_an_imatrix_is_not_accepted_as_a_model(tmp_path: Path) -> None:
    imatrix = write(tmp_path / "i.gguf", lambda w: w.add_type("imatrix"))
    assert problems_of(imatrix) == f"{imatrix}: is an imatrix, not a model; give it to --imatrix"


def test_a_gguf_with_only_a_vocabulary_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "v.gguf", lambda w: w.add_array("tokenizer.ggml.tokens", ["a"]))
    assert refused(source) == ("the model has no tensors; there is nothing to write",)


def test_a_pre_tokenizer_cannot_be_given_for_a_gguf(tmp_path: Path) -> None:
    with pytest.raises(VocabError, match=r"--set tokenizer\.ggml\.pre=qwen2"):
        load_model(write(tmp_path / "s.gguf", with_layers), pre="qwen2")


@pytest.mark.parametrize("name", ["none.gguf", "none-00001-of-00002.gguf"])
def test_a_missing_file_is_reported_with_its_name(tmp_path: Path, name: str) -> None:
    assert f"{name}: cannot be read: No such file" in problems_of(tmp_path / name)


def test_the_error_for_a_folder_of_ggufs_names_one(tmp_path: Path) -> None:
    write(tmp_path / "s.gguf", with_layers)
    (tmp_path / "config.json").write_text("{}")
    assert "but s.gguf; to use it as the source, give" in problems_of(tmp_path)


# ---- llama.cpp -----------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.slow
def test_llama_cpp_generates_text_from_a_requantized_file(tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference(TINY_BOOKS)
    q8_0 = made(reference.folder, tmp_path / "q8_0.gguf")
    with pytest.raises(DynquantError, match=r"quantized already \(Q8_0\)"):
        made(q8_0, tmp_path / "q4_k.gguf", recipe("Q4_K", "fallback: [Q8_0]"))
    by = recipe("Q4_K", "fallback: [Q8_0]")
    out = made(q8_0, tmp_path / "q4_k.gguf", by, allow_requantize=True)
    assert GGMLQuantizationType.Q4_K in {t.tensor_type for t in GGUFReader(out).tensors}
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert divergence(reference.log_probabilities, ours) < 2e-2
    assert len(set(re.findall(r"[A-Za-z]+", llamacpp.generate(out, "Once upon a time", 40)))) >= 8


# ---- commands ------------------------------------------------------------------------------------


def command(*args: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dynquant.cli", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.mark.slow
def test_plan_convert_and_inspect_accept_a_gguf(tmp_path: Path) -> None:
    source, out = write(tmp_path / "s.gguf", with_blocks), tmp_path / "o.gguf"
    planned = command("plan", source, "-r", "f32", "--allow-requantize", "--json")
    assert planned.returncode == 0, planned.stderr
    done = command("convert", source, "-o", out, "-r", "f32", "--allow-requantize")
    assert done.returncode == 0, done.stderr
    inspected = json.loads(command("inspect", out, "--json").stdout)
    wanted = json.loads(planned.stdout)["tensors"]
    assert [t["name"] for t in inspected["tensors"]] == [t["name"] for t in wanted]
    assert {t["type"] for t in inspected["tensors"]} == {"F32"}


@pytest.mark.slow
def test_commands_refuse_blocks_of_another_type_with_one_line_each(tmp_path: Path) -> None:
    source = write(tmp_path / "s.gguf", with_blocks)
    for args in (["plan", source], ["convert", source, "-o", tmp_path / "o.gguf"]):
        done = command(*args, "-r", "bf16")
        assert (done.returncode, done.stdout) == (1, "")
        assert [li.rpartition("(")[2] for li in done.stderr.splitlines()] == [
            "--allow-requantize)"
        ] * 2
    assert not list(tmp_path.glob("o.gguf*"))
