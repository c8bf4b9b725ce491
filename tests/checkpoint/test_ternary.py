"""Ternary checkpoints of BitNet keep every weight in GGUF's ternary types, with their factor.

The oracles are the gguf package, which decodes blocks, and llama.cpp's answers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import divergence
from checkpoints import config_of, tensors_of
from oracles import gguf_decode
from packers import FORMATS, Stored, bf16_bits, bitnet, write_stored
from places import TESTS

import dynquant
from dynquant.checkpoint.gguf import read_gguf
from dynquant.checkpoint.packed import unpack
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import CheckpointError
from dynquant.quants import ALL
from dynquant.recipe.loader import parse_recipe
from dynquant.transforms import read_weights

CONFIG = config_of(
    "LlamaForCausalLM",
    vocab_size=448,
    hidden_size=256,
    intermediate_size=192,
    head_dim=32,
    num_attention_heads=8,
    num_key_value_heads=2,
)
KINDS = ("bitnet", "bitnet of autobitlinear")


def checkpoint(folder: Path, kind: str) -> Path:
    """A Llama whose linear layers are ternary: rows of 256 weights, and of 192 in ffn_down."""
    rng = np.random.default_rng(4)
    packed: Stored = {}
    for name, x in tensors_of(CONFIG).items():
        if name.endswith("proj.weight"):
            packed |= FORMATS[kind].pack(name, x.shape, rng)[0]
        else:
            packed[name] = ("F32", x)
    write_stored(folder, CONFIG | {"quantization_config": FORMATS[kind].settings}, packed)
    for file in (TESTS / "references" / "llama-3.1").glob("*.json"):
        if file.name != "config.json":
            shutil.copy(file, folder)
    return folder


def recipe(*rules: str) -> Any:
    return parse_recipe(f"default: F32\nrules: [{', '.join(rules)}]", "r.yaml", "r")


def tensors_in(path: Path) -> dict[str, tuple[str, Any]]:
    """Return the type of each tensor and its weights; the gguf package cannot read Q2_0."""
    content, file = path.read_bytes(), read_gguf(path)
    found: dict[str, tuple[str, Any]] = {}
    for t in file.tensors:
        start = file.data_offset + t.offset
        blocks = np.frombuffer(content[start : start + t.n_bytes], np.uint8)
        rows = blocks.reshape(int(np.prod(t.shape[:-1])), -1)
        qtype = ALL[t.type_name]
        x = rows.view("<f4") if t.type_name == "F32" else gguf_decode(rows, qtype)
        found[t.name] = (t.type_name, x)
    return found


KEEP = "{role: ['attn_*', 'ffn_*'], keep: true}"
TQ1 = "{role: ffn_up, type: TQ1_0}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rules", [(KEEP,), (TQ1, KEEP)])
def test_kept_ternary_weights_are_the_same_numbers(
    kind: str, rules: tuple[str, ...], tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", kind)
    result = dynquant.convert(folder, tmp_path / "kept.gguf", recipe=recipe(*rules), threads=2)
    dynquant.convert(folder, tmp_path / "f32.gguf", recipe="f32", threads=2)
    assert result.loss is None
    stored, floats = tensors_in(tmp_path / "kept.gguf"), tensors_in(tmp_path / "f32.gguf")
    kept = [name for name in stored if name.endswith(".scale")]
    assert len(kept) == 2 * 7
    for name in kept:
        weight = name.removesuffix("scale") + "weight"
        qtype, decoded = stored[weight]
        wanted = "TQ1_0" if "ffn_up" in name and len(rules) > 1 else "TQ2_0"
        assert qtype == ("Q2_0" if "ffn_down" in name else wanted)
        np.testing.assert_array_equal(decoded * stored[name][1], floats[weight][1])


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_llamacpp_answers_as_with_the_floats(kind: str, tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    folder = checkpoint(tmp_path / "model", kind)
    prompts = [[5, 17, 300, 40, 41], [7, 8, 9]]
    answers: dict[str, Any] = {}
    for name, rules in (("f32", ()), ("TQ2_0", (KEEP,)), ("TQ1_0", (TQ1, KEEP))):
        out = tmp_path / f"{name}.gguf"
        dynquant.convert(folder, out, recipe=recipe(*rules) if rules else "f32", threads=2)
        answers[name] = llamacpp.log_probabilities(out, prompts)
    # llama.cpp rounds activations to 8 bits beside these types.
    assert divergence(answers["f32"], answers["TQ2_0"]) < 0.01
    assert divergence(answers["f32"], answers["TQ1_0"]) < 0.01


@pytest.mark.slow
def test_a_file_with_kept_ternary_weights_is_verified_against_its_source(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from dynquant.cli import app

    folder, out = checkpoint(tmp_path / "model", KINDS[0]), tmp_path / "kept.gguf"
    dynquant.convert(folder, out, recipe=recipe(TQ1, KEEP), threads=2)
    found = CliRunner().invoke(app, ["verify", str(out), "--against", str(folder)])
    assert found.exit_code == 0, found.output


def weight(folder: Path, settings: dict[str, Any], stored: Stored) -> Any:
    write_stored(folder, {"quantization_config": settings}, stored)
    (found,) = unpack(open_checkpoint(folder)).tensors.values()
    return found.source()


def test_a_code_that_is_not_ternary_is_reported(tmp_path: Path) -> None:
    stored, _ = bitnet(divides=True)("layer.weight", (8, 64), np.random.default_rng(0))
    stored["layer.weight"][1][1, 3] |= 0b1100
    source = weight(tmp_path, {"quant_method": "bitnet"}, stored)
    read_weights(source, 0, 3)
    with pytest.raises(CheckpointError, match=r"layer\.weight has a code that is not ternary"):
        read_weights(source, 3, 4)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_that_is_not_positive_is_reported(scale: float, tmp_path: Path) -> None:
    stored, _ = bitnet(divides=True)("layer.weight", (8, 64), np.random.default_rng(0))
    stored["layer.weight_scale"] = ("BF16", bf16_bits(np.float32([scale])))
    source = weight(tmp_path, {"quant_method": "bitnet"}, stored)
    with pytest.raises(CheckpointError, match="is not a positive number"):
        read_weights(source, 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.weight_scale": None}, "missing"),
        ({"layer.weight_scale": ("F32", np.ones(2, "f4"))}, "one scale for a matrix"),
        ({"layer.weight_scale": ("I32", np.ones(1, "i4"))}, "stored as I32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stored, _ = bitnet(divides=True)("layer.weight", (8, 64), np.random.default_rng(0))
    stored = {n: t for n, t in (stored | change).items() if t is not None}
    with pytest.raises(CheckpointError, match=message):
        weight(tmp_path, {"quant_method": "bitnet"}, stored)


ONLINE = {
    "quant_method": "bitnet",
    "quantization_mode": "online",
    "modules_to_not_convert": ["special"],
}


@pytest.mark.parametrize(
    "config", [{"quantization_config": ONLINE}, {"architectures": ["BitnetForCausalLM"]}]
)
def test_weights_that_are_rounded_while_the_model_runs_are_rounded_in_the_file(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """As llama.cpp's converter rounds them, except embeddings and modules that are named."""
    is_first = "architectures" in config
    rng = np.random.default_rng(6)
    names = ("model.embed_tokens", "a.q_proj", "a.gate", "b.special", "lm_head")
    x = rng.standard_normal((8, 64)).astype(np.float32)
    stored: Stored = {f"{n}.weight": ("F32", x) for n in names}
    write_stored(tmp_path, config, stored)
    found = unpack(open_checkpoint(tmp_path)).tensors
    rounded = np.clip(np.rint(x / np.abs(x).mean()), -1, 1) * np.abs(x).mean()
    for name in names:
        values = read_weights(found[f"{name}.weight"].source(), 0, 8)
        is_rounded = name.startswith("a.") or (name.startswith("b.") and is_first)
        expected = rounded if is_rounded else x
        np.testing.assert_allclose(values, expected, rtol=3e-7, atol=0)
