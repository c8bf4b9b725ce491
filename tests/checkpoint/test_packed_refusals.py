"""What is wrong with a quantized checkpoint is told from its headers, all of it, by its names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packers import (
    FORMATS,
    Stored,
    awq,
    by_rows,
    compressed,
    fp8_blocks,
    gptq,
    gptq_settings,
    integers,
    nvfp4,
    write_stored,
)

from dynquant.checkpoint.packed import Weights, unpack
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import CheckpointError
from dynquant.tensors import n_rows
from dynquant.transforms import read_weights

RNG = np.random.default_rng(5)
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32]}
INT4 = compressed("pack-quantized", num_bits=4)


def weights(folder: Path, settings: Any, tensors: Stored) -> Weights:
    config = {} if settings is None else {"quantization_config": settings}
    return unpack(open_checkpoint(write_stored(folder, config, tensors)))


def refusal(folder: Path, settings: Any, tensors: Stored) -> list[str]:
    with pytest.raises(CheckpointError) as e:
        weights(folder, settings, tensors)
    assert all(m.startswith(str(folder)) for m in e.value.messages)
    return [
        m.removeprefix(f"{folder}").removeprefix("/").removeprefix(": ") for m in e.value.messages
    ]


def layers(
    pack: Callable[..., tuple[Stored, np.ndarray]], shape: tuple[int, int] = (64, 96), n: int = 3
) -> Stored:
    return {k: v for i in range(n) for k, v in pack(f"l.{i}.up.weight", shape, RNG)[0].items()}


def without(tensors: Stored, ending: str) -> Stored:
    return {name: t for name, t in tensors.items() if not name.endswith(ending)}


@pytest.mark.parametrize(
    ("method", "what", "remedy"),
    [
        ("bitsandbytes", "NF4, FP4 or LLM.int8() of bitsandbytes", "take its base model, or save"),
        ("hqq", "half-quadratic quantization", "take its base model, or save it again"),
        ("exl2", "ExLlamaV2's mixed groups", "take the checkpoint it was made from"),
        ("exl3", "ExLlamaV3's trellis codes", "take the checkpoint it was made from"),
        ("aqlm", "additive codebooks", "take the checkpoint it was made from"),
        ("quip", "lattice codebooks of QuIP#", "take the checkpoint it was made from"),
        ("intel/auto-round", "AutoRound's own packing", "export it again with format auto_gptq"),
    ],
)
def test_other_formats_are_refused_by_name_with_what_to_do(
    tmp_path: Path, method: str, what: str, remedy: str
) -> None:
    (message,) = refusal(tmp_path, {"quant_method": method}, {"a": ("U8", np.ones(1, "u1"))})
    assert message.startswith(
        f"config.json: quantization_config: quant_method '{method}' ({what}) is not read; {remedy}"
    )
    assert message.endswith(
        "; read are fp8, fbgemm_fp8, compressed-tensors, modelopt, mxfp4, gptq, awq"
    )


VARIANTS = {
    "unheard of": ({"quant_method": "x9"}, "quant_method 'x9' is not read; take the checkpoint"),
    "no method": ({}, "quant_method 'none' is not read; take"),
    "not an object": ("fp8", "quantization_config is 'fp8', not an object"),
    "sparse": (compressed("sparse-24-bitmask"), "format 'sparse-24-bitmask' of compressed-tensors"),
    "sparsity": (
        INT4 | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity format 'sparse-24-bitmask' is not read",
    ),
    "gemv": ({"quant_method": "awq", "bits": 4, "version": "GEMV"}, "AWQ version 'gemv' of"),
    "awq bits": ({"quant_method": "awq", "bits": 3}, "awq of 3 bits is not read; 4 are"),
    "gptq bits": (gptq_settings(5), "gptq of 5 bits is not read; 2, 3, 4, 8 are"),
    "no bits": ({"quant_method": "gptq", "bits": "4"}, "bits is '4', but gptq needs a number"),
    "marlin": (gptq_settings(4, checkpoint_format="marlin"), "checkpoint_format 'marlin' of GPTQ"),
    "smoothed": (
        {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"},
        "quant_algo W4A16_AWQ is not read, since it scales activations as well",
    ),
    "block": (FP8 | {"weight_block_size": [128]}, "a block of [128] is not two sizes"),
    "no block": (FP8 | {"weight_block_size": [0, 128]}, "a block of [0, 128] is not two sizes"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "text"), VARIANTS.values(), ids=VARIANTS)
def test_variants_that_are_not_read_are_refused(tmp_path: Path, settings: Any, text: str) -> None:
    (message,) = refusal(tmp_path, settings, {"a": ("U8", np.ones(1, "u1"))})
    assert text in message


def test_floats_are_plain_whatever_an_unread_method_left_in_the_configuration(
    tmp_path: Path,
) -> None:
    plain: Stored = {"a.weight": ("F32", np.ones((2, 2), "f4"))}
    found = weights(tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True}, plain)
    assert list(found.tensors) == ["a.weight"]


FP8_PACK = fp8_blocks(32, 32)
FAULTS: dict[str, tuple[Any, Stored, str]] = {
    "fp8 without settings": (
        None,
        layers(FP8_PACK),
        "l.{0-2}.up.weight is stored as F8_E4M3, and config.json has no quantization_config",
    ),
    "gptq without settings": (
        None,
        layers(gptq(4)),
        "l.{0-2}.up.qweight is stored as I32, and config.json has no quantization_config",
    ),
    "scales missing": (
        FP8,
        without(layers(FP8_PACK), "_scale_inv"),
        "l.{0-2}.up.weight is stored as F8_E4M3, and its scales are missing: *_scale_inv",
    ),
    "scales of a channel missing": (
        compressed("float-quantized"),
        without(layers(by_rows("F8_E4M3", True)), "_scale"),
        "l.{0-2}.up.weight is stored as F8_E4M3, and its scales are missing: *_scale",
    ),
    "another block": (
        FP8 | {"weight_block_size": [128, 128]},
        layers(FP8_PACK),
        "l.{0-2}.up.weight is [64, 96], which scales of shape [2, 3] do not fit: blocks of [128,"
        " 128] in config.json want others",
    ),
    "groups that are unequal": (
        compressed("float-quantized"),
        layers(fp8_blocks(1, 20)),
        "l.{0-2}.up.weight is [64, 96], which scales of shape [64, 5] do not fit",
    ),
    "bytes as scales": (
        FP8,
        layers(fp8_blocks(32, 32, "U8")),
        "l.{0-2}.up.weight has scales stored as U8, which is not read; no scale_fmt ue8m0",
    ),
    "no scale of all": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        without(layers(nvfp4(True)), "_scale_2"),
        "l.{0-2}.up.weight cannot be read without *_scale_2, which is missing",
    ),
    "no global scale": (
        compressed("nvfp4-pack-quantized"),
        without(layers(nvfp4(False)), "_global_scale"),
        "l.{0-2}.up.weight cannot be read without *_global_scale, which is missing",
    ),
    "no shape and scale": (
        INT4,
        without(without(layers(integers(4, 32)), "_scale"), "_shape"),
        "l.{0-2}.up.weight_packed cannot be read without *_scale and *_shape, which are missing",
    ),
    "no zero points": (
        compressed("pack-quantized", num_bits=4, symmetric=False),
        layers(integers(4, 32)),
        "l.{0-2}.up.weight_packed cannot be read without *_zero_point, which is missing",
    ),
    "another shape": (
        INT4,
        layers(integers(4, 32)) | {f"l.{i}.up.weight_shape": ("I64", np.array([64, 700]))
                                   for i in range(3)},
        "l.{0-2}.up.weight is packed as [64, 12], which no number of bits does for [64, 700]",
    ),
    "another number of rows": (
        INT4,
        layers(integers(4, 32)) | {f"l.{i}.up.weight_shape": ("I64", np.array([65, 96]))
                                   for i in range(3)},
        "l.{0-2}.up.weight is packed as [64, 12], which *_shape [65, 96] does not fit",
    ),
    "zero points of another shape": (
        INT4,
        layers(integers(4, 32, zeros=True), n=1)
        | {"l.0.up.weight_zero_point": ("I32", np.zeros((7, 3), np.int32))},
        "l.0.up.weight has zero points I32 [7, 3], but scales [64, 3]",
    ),
    "blocks without scales": (
        {"quant_method": "mxfp4"},
        {"e.down_proj_blocks": ("U8", np.zeros((2, 3, 4, 16), np.uint8))},
        "e.down_proj_blocks cannot be read without *_scales, which is missing",
    ),
    "blocks of another size": (
        {"quant_method": "mxfp4"},
        {
            "e.down_proj_blocks": ("U8", np.zeros((2, 3, 4, 8), np.uint8)),
            "e.down_proj_scales": ("U8", np.zeros((2, 3, 4), np.uint8)),
        },
        "e.down_proj has blocks of shape [2, 3, 4, 8] and scales U8 [2, 3, 4]; MXFP4 has 16 bytes",
    ),
    "qzeros and scales missing": (
        gptq_settings(4),
        without(without(layers(gptq(4)), "scales"), "qzeros"),
        "l.{0-2}.up.qweight cannot be read without *.qzeros and *.scales, which are missing",
    ),
    "g_idx missing": (
        gptq_settings(4, desc_act=True),
        layers(gptq(4)),
        "l.{0-2}.up.qweight cannot be read without *.g_idx, which is missing",
    ),
    "other bits": (
        gptq_settings(8),
        layers(gptq(4)),
        "l.{0-2}.up.weight has qweight [12, 64], qzeros [3, 8], scales [3, 64], which do not fit",
    ),
    "another group size": (
        gptq_settings(4) | {"group_size": 64},
        layers(gptq(4)),
        "l.{0-2}.up.weight has 96 inputs and scales of 3 groups, which group_size 64 in",
    ),
    "awq as gptq": (
        gptq_settings(4),
        layers(awq),
        "l.{0-2}.up.weight has qweight [96, 8], qzeros [3, 8], scales [3, 64], which do not fit",
    ),
    "twice": (
        gptq_settings(4),
        layers(gptq(4)) | {"l.1.up.weight": ("F16", np.zeros((64, 96), np.float16))},
        "l.1.up.weight is there twice, quantized and not; remove one of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "tensors", "text"), FAULTS.values(), ids=FAULTS)
def test_parts_that_make_no_weight_are_refused_all_in_one_line(
    tmp_path: Path, settings: Any, tensors: Stored, text: str
) -> None:
    (message,) = refusal(tmp_path, settings, tensors)
    assert text in message


def test_different_faults_are_told_at_once(tmp_path: Path) -> None:
    lone = {"m.weight": ("F8_E5M2", np.zeros((2, 2), np.uint8))}
    messages = refusal(tmp_path, FP8, without(layers(FP8_PACK), "1.up.weight_scale_inv") | lone)
    assert len(messages) == 2
    assert messages[0].startswith("l.1.up.weight is stored as F8_E4M3")
    assert messages[1].startswith("m.weight is stored as F8_E5M2")


def test_scales_of_activations_are_left_out_with_the_reason(tmp_path: Path) -> None:
    tensors = layers(by_rows("F8_E4M3", True), n=1)
    tensors |= {"l.0.k_scale": ("F32", np.ones(1, "f4")), "l.0.k_proj": ("F32", np.ones(1, "f4"))}
    found = weights(tmp_path, compressed("float-quantized"), tensors)
    assert set(found.ignored) == {"l.0.up.input_scale", "l.0.k_scale"}
    assert all("activations" in reason for reason in found.ignored.values())
    assert set(found.tensors) - set(found.ignored) == {"l.0.up.weight", "l.0.k_proj"}


def test_settings_are_found_where_models_that_see_and_modelopt_have_them(tmp_path: Path) -> None:
    tensors = layers(FP8_PACK, n=1)
    config = {"text_config": {"quantization_config": FP8}}
    folder = write_stored(tmp_path / "seeing", config, tensors)
    assert list(unpack(open_checkpoint(folder)).tensors) == ["l.0.up.weight"]
    folder = write_stored(tmp_path / "modelopt", {}, layers(nvfp4(True), n=1))
    text = '{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}'
    (folder / "hf_quant_config.json").write_text(text)
    assert list(unpack(open_checkpoint(folder)).tensors) == ["l.0.up.weight"]


def test_layers_may_have_bits_of_their_own(tmp_path: Path) -> None:
    tensors = {}
    expected = {}
    for i, bits in enumerate((2, 4, 8)):
        name = f"l.{i}.weight"
        stored, expected[name] = gptq(bits, act_order=True)(name, (64, 96), RNG)
        tensors |= stored
    found = weights(tmp_path, gptq_settings(4), tensors).tensors
    for name, value in expected.items():
        np.testing.assert_array_equal(read_weights(found[name].source(), 0, 64), value)


def test_gptqs_first_format_is_its_second_with_less_one_in_every_word(tmp_path: Path) -> None:
    """Also where a zero of 0 borrows from its neighbour: GPTQModel writes and reads it so."""
    stored, value = gptq(4, v2=True)("l.weight", (64, 96), RNG)
    assert (stored["l.qzeros"][1].view(np.uint32) & 15 == 0).any()
    less = stored["l.qzeros"][1].view(np.uint32) - np.uint32(0x11111111)
    stored["l.qzeros"] = ("I32", less)
    found = weights(tmp_path, gptq_settings(4), stored).tensors["l.weight"].source()
    np.testing.assert_array_equal(read_weights(found, 0, 64), value)


@pytest.mark.parametrize("form", ["gptq act order", "int4 act order"])
@pytest.mark.parametrize("group", [-1, 3])
def test_a_group_without_scales_is_told_when_it_is_read(
    tmp_path: Path, form: str, group: int
) -> None:
    tensors = layers(FORMATS[form].pack, n=1)
    name = next(n for n in tensors if n.endswith("g_idx"))
    tensors[name][1][5] = group
    (weight,) = (
        w for n, w in weights(tmp_path, FORMATS[form].settings, tensors).tensors.items()
        if n.endswith("weight")
    )  # fmt: skip
    message = rf"{re.escape(name)} has groups -?\d to \d, but there are scales of 3; the file is"
    with pytest.raises(CheckpointError, match=message):
        read_weights(weight.source(), 0, 1)


def test_a_shape_that_differs_from_its_neighbours_is_told_when_it_is_read(tmp_path: Path) -> None:
    tensors = layers(integers(4, 32))
    tensors["l.2.up.weight_shape"] = ("I64", np.array([64, 95]))
    found = weights(tmp_path, INT4, tensors).tensors
    read_weights(found["l.1.up.weight"].source(), 0, 64)
    with pytest.raises(CheckpointError, match=r"l.2.up.weight_shape says \[64, 95\], but the"):
        read_weights(found["l.2.up.weight"].source(), 0, 64)


def test_experts_of_packed_integers_and_of_fp4_may_be_stacked(tmp_path: Path) -> None:
    """Scales of each matrix, one for all of them, and one for each."""
    rng = np.random.default_rng(2)
    codes = rng.integers(-128, 128, (3, 4, 8)).astype(np.int8)
    for shape in ((1,), (3,), (3, 1, 1), (3, 4), (3, 4, 1), (3, 4, 2)):
        scale = rng.random(shape).astype(np.float32)
        tensors: Stored = {"e.up": ("I8", codes), "e.up_scale": ("F32", scale)}
        source = weights(tmp_path, compressed("int-quantized"), tensors).tensors["e.up"].source()
        full = scale.reshape(*shape, *[1] * (3 - len(shape)))
        if shape[-1] == 2:
            full = full.repeat(4, -1)
        found = read_weights(source, 0, n_rows(source.shape)).reshape(3, 4, 8)
        np.testing.assert_array_equal(found, codes.astype(np.float32) * full)
