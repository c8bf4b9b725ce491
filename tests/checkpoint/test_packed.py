"""Weights of quantized checkpoints equal those that the library of each format computes.

The oracles are these libraries (tests/references/packed, written by make_packed_references.py) and
the definitions of the formats (tests/support/packers.py).
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from agreement import divergence
from checkpoints import config_of, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from packers import FORMATS, Format, Stored, write_stored
from places import TESTS
from subsets import slow_except

import dynquant
from dynquant.arrays import F32, U8
from dynquant.checkpoint.packed import Weights, transposed, unpack
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.part_cache import release_parts
from dynquant.quants import decode, isas
from dynquant.recipe.loader import parse_recipe
from dynquant.tensors import ShardFile, TensorSource, n_rows, row_bytes
from dynquant.transforms import read_weights

REFERENCES = TESTS / "references" / "packed"
CASES = sorted(p.name for p in REFERENCES.iterdir())
NAMES = {"fp8-stacked": "layer.experts", "gpt-oss": "layer.experts"}


def weights(folder: Path) -> Weights:
    return unpack(open_checkpoint(folder))


def whole(source: TensorSource) -> F32:
    return read_weights(source, 0, n_rows(source.shape)).reshape(source.shape)


def bf16_rounded(x: F32) -> F32:
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DYNQUANT_ISA", request.param)
    return request.param


@pytest.mark.parametrize("case", slow_except(CASES[::4], CASES))
def test_weights_equal_those_of_the_library_of_the_format(isa: str, case: str) -> None:
    """After rounding to the type of the library's result; ours are float32, rounded once."""
    found = weights(REFERENCES / case)
    (name,) = found.tensors.keys() - found.ignored.keys()
    assert name == NAMES.get(case, "layer.weight")
    ours = whole(found.tensors[name].source())
    theirs = np.load(REFERENCES / case / "expected.npy")
    if theirs.dtype == np.uint16:
        theirs = (theirs.astype(np.uint32) << 16).view(np.float32)
        ours = bf16_rounded(ours)
    np.testing.assert_array_equal(ours.astype(theirs.dtype), theirs)


@cache
def source_and_whole(case: str) -> tuple[TensorSource, F32]:
    found = weights(REFERENCES / case)
    source = found.tensors[NAMES.get(case, "layer.weight")].source()
    return source, whole(source).reshape(-1, source.shape[-1])


@pytest.mark.slow
@given(st.sampled_from(CASES), st.data())
def test_any_rows_can_be_read_separately(case: str, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transposed, "PANEL_BYTES", 1)
        patch.setattr(transposed, "_ALIGNMENT", 32)
        release_parts()
        source, expected = source_and_whole(case)
        start = data.draw(st.integers(0, len(expected) - 1))
        stop = data.draw(st.integers(start + 1, len(expected)))
        np.testing.assert_array_equal(read_weights(source, start, stop), expected[start:stop])


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith(("gptq", "awq"))])
def test_a_transposed_weight_is_read_in_panels_of_its_columns(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transposed, "PANEL_BYTES", 1)
    monkeypatch.setattr(transposed, "_ALIGNMENT", 32)
    release_parts()
    computed: list[int] = []
    panel = transposed.TransposedRows._panel

    def counted(rows: transposed.TransposedRows, index: int) -> transposed._Panel:
        computed.append(index)
        return panel(rows, index)

    monkeypatch.setattr(transposed.TransposedRows, "_panel", counted)
    source, expected = source_and_whole(case)
    np.testing.assert_array_equal(whole(source), expected)
    assert computed == list(range(-(-len(expected) // 32)))
    read_weights(source, 0, 1)
    assert computed == list(range(-(-len(expected) // 32)))


# ---- from checkpoint to file ---------------------------------------------------------------------

CONFIG = config_of(
    "LlamaForCausalLM",
    vocab_size=448,
    hidden_size=64,
    intermediate_size=160,
    head_dim=32,
)


def both_ways(folder: Path, form: Format) -> tuple[Path, Path]:
    """Write a checkpoint of random codes and a checkpoint of the same weights as floats."""
    rng = np.random.default_rng(17)
    packed: Stored = {}
    plain: Stored = {}
    for name, x in tensors_of(CONFIG).items():
        packed[name] = plain[name] = ("F32", x)
        if name.endswith("proj.weight"):
            del packed[name]
            stored, value = form.pack(name, x.shape, rng)
            packed |= stored
            plain[name] = ("F32", value.astype(np.float32))
    folders = folder / "packed" / "model", folder / "plain" / "model"
    write_stored(folders[0], CONFIG | {"quantization_config": form.settings}, packed)
    write_stored(folders[1], CONFIG, plain)
    for made in folders:
        for file in (TESTS / "references" / "llama-3.1").glob("*.json"):
            if file.name != "config.json":
                shutil.copy(file, made)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", slow_except(list(FORMATS.values())[::4], FORMATS.values()), ids=FORMATS
)
@pytest.mark.parametrize("recipe", slow_except(["bf16"], ["f32", "bf16"]))
def test_a_quantized_checkpoint_and_its_floats_give_the_same_file(
    form: Format, recipe: str, tmp_path: Path
) -> None:
    packed, plain = both_ways(tmp_path, form)
    for folder in (packed, plain):
        dynquant.convert(folder, folder / "out.gguf", recipe=recipe, threads=2)
    assert (packed / "out.gguf").read_bytes() == (plain / "out.gguf").read_bytes()


@pytest.mark.slow
def test_mxfp4_is_copied_bit_for_bit_if_the_recipe_keeps_it(tmp_path: Path) -> None:
    packed, _ = both_ways(tmp_path, FORMATS["mxfp4"])
    recipe = parse_recipe(
        "default: F32\nrules: [{role: [ffn_up, ffn_down], type: MXFP4}]", "r.yaml", "r"
    )
    dynquant.convert(packed, tmp_path / "out.gguf", recipe=recipe, threads=2)
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    tensors = open_checkpoint(packed).tensors
    for ours, theirs in (("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")):
        blocks = np.asarray(stored[f"blk.1.{ours}.weight"].data).reshape(-1, 17)
        scales = tensors[f"model.layers.1.{theirs}.weight_scale"]
        codes = tensors[f"model.layers.1.{theirs}.weight_packed"]
        found = [np.empty(t.n_bytes, np.uint8) for t in (scales, codes)]
        for tensor, into in zip((scales, codes), found, strict=True):
            tensor.file.read(tensor.offset, into)
        np.testing.assert_array_equal(blocks[:, 0], found[0])
        low, high = blocks[:, 1:] & 15, blocks[:, 1:] >> 4
        in_order = np.concatenate([low, high], 1)
        pairs = in_order[:, ::2] | in_order[:, 1::2] << 4
        np.testing.assert_array_equal(pairs.reshape(-1), found[1])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["nvfp4", "nvfp4 of modelopt"])
def test_nvfp4_is_copied_bit_for_bit_with_a_separate_factor(form: str, tmp_path: Path) -> None:
    packed, plain = both_ways(tmp_path, FORMATS[form])
    recipe = parse_recipe(
        "default: F32\nrules: [{role: [attn_q, attn_output, ffn_gate, ffn_up], type: NVFP4}]",
        "r.yaml",
        "r",
    )
    plan = dynquant.convert(packed, tmp_path / "out.gguf", recipe=recipe, threads=2).plan
    dynquant.convert(plain, tmp_path / "f32.gguf", recipe="f32", threads=2)
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    floats = {t.name: t for t in gguf.GGUFReader(tmp_path / "f32.gguf").tensors}
    factors = [name for name in stored if name.endswith(".scale")]
    assert len(factors) == sum(t.type.name == "NVFP4" for t in plan.tensors) == 8
    for name in factors:
        weight = name.removesuffix("scale") + "weight"
        decoded = gguf.quants.dequantize(stored[weight].data, stored[weight].tensor_type)
        np.testing.assert_allclose(
            decoded * stored[name].data, floats[weight].data, rtol=3e-7, atol=0
        )


@pytest.mark.slow
@pytest.mark.oracle
def test_llamacpp_multiplies_by_the_factor(tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    packed, _ = both_ways(tmp_path, FORMATS["nvfp4 of modelopt"])
    prompts = [[5, 17, 300, 40, 41], [7, 8, 9]]
    answers = {}
    for name, rule in (("f32", ""), ("kept", "\nrules: [{role: [ffn_up, attn_q], type: NVFP4}]")):
        out = tmp_path / f"{name}.gguf"
        recipe = parse_recipe(f"default: F32{rule}", "r.yaml", "r")
        dynquant.convert(packed, out, recipe=recipe, threads=2)
        answers[name] = llamacpp.log_probabilities(out, prompts)
    out = tmp_path / "kept.gguf"
    content = np.fromfile(out, np.uint8)
    for tensor in gguf.GGUFReader(out).tensors:
        if tensor.name.endswith(".scale"):
            at = int(tensor.data_offset)
            content[at : at + 4] = np.float32(1).reshape(1).view(np.uint8)
    content.tofile(out)
    without = llamacpp.log_probabilities(out, prompts)
    # With NVFP4, llama.cpp rounds activations to 8 bits, so answers are similar but not equal.
    assert divergence(answers["f32"], answers["kept"]) < 0.05
    assert divergence(answers["f32"], without) > 1


@pytest.mark.parametrize("case", ["fp8-32x32", "ct-int4-zeros", "modelopt-nvfp4", "gpt-oss"])
def test_only_the_needed_bytes_of_rows_are_read(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(REFERENCES / case)
    source = unpack(checkpoint).tensors[NAMES.get(case, "layer.weight")].source()
    lengths: list[int] = []
    read = ShardFile.read

    def counted(file: ShardFile, offset: int, into: U8) -> None:
        lengths.append(into.size)
        read(file, offset, into)

    monkeypatch.setattr(ShardFile, "read", counted)
    read_weights(source, 9, 11)
    codes, *others = sorted(lengths, reverse=True)
    n_bytes = max(t.n_bytes for t in checkpoint.tensors.values())
    assert codes == 2 * n_bytes // n_rows(source.shape)
    assert sum(others) <= codes


@pytest.mark.parametrize("case", slow_except(CASES[::4], CASES))
def test_rows_can_be_read_into_an_unaligned_buffer(isa: str, case: str) -> None:
    source, expected = source_and_whole(case)
    n_bytes = len(expected) * row_bytes(source)
    unaligned = np.empty(n_bytes + 1, np.uint8)[1:]
    source.read(0, len(expected), unaligned)
    found = decode(unaligned.reshape(len(expected), -1).copy(), source.stored, source.shape[-1])
    np.testing.assert_array_equal(found, expected)
