"""All problems of a quantized checkpoint are reported from its headers, with tensor names."""

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
    ("method", "description", "advice"),
    [
        ("bitsandbytes", "NF4, FP4 or LLM.int8() of bitsandbytes", "use its base model, or save"),
        ("hqq", "half-quadratic quantization", "use its base model, or save it again"),
        ("exl2", "ExLlamaV2's mixed groups", "use the checkpoint it was made from"),
        ("exl3", "ExLlamaV3's trellis codes", "use the checkpoint it was made from"),
        ("aqlm", "additive codebooks", "use the checkpoint it was made from"),
        ("quip", "lattice codebooks of QuIP#", "use the checkpoint it was made from"),
        (
            "intel/auto-round",
            "a packing_format of AutoRound other than those of GPTQ, AWQ and FP8",
            "export it again with format auto_round:auto_gptq or",
        ),
    ],
)
def test_other_formats_are_refused_by_name_with_a_remedy(
    tmp_path: Path, method: str, description: str, advice: str
) -> None:
    (message,) = refusal(tmp_path, {"quant_method": method}, {"a": ("U8", np.ones(1, "u1"))})
    assert message.startswith(
        f"config.json: quantization_config: quant_method '{method}' ({description}) is not"
        f" supported; {advice}"
    )
    assert message.endswith(
        "; supported: fp8, fbgemm_fp8, compressed-tensors, modelopt, mxfp4, gptq, awq, bitnet"
    )


VARIANTS = {
    "unknown method": ({"quant_method": "x9"}, "quant_method 'x9' is not supported; use the"),
    "no method": ({}, "quant_method 'none' is not supported; use"),
    "not an object": ("fp8", "quantization_config is 'fp8', not an object"),
    "sparse": (compressed("sparse-24-bitmask"), "format 'sparse-24-bitmask' of compressed-tensors"),
    "sparsity": (
        INT4 | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity format 'sparse-24-bitmask' is not supported",
    ),
    "gemv": ({"quant_method": "awq", "bits": 4, "version": "GEMV"}, "AWQ version 'gemv' of"),
    "awq bits": ({"quant_method": "awq", "bits": 3}, "awq of 3 bits is not supported; supported:"),
    "gptq bits": (gptq_settings(5), "gptq of 5 bits is not supported; supported: 2, 3, 4, 8"),
    "no bits": ({"quant_method": "gptq", "bits": "4"}, "bits is '4', but gptq needs an integer"),
    "marlin": (gptq_settings(4, checkpoint_format="marlin"), "checkpoint_format 'marlin' of GPTQ"),
    "smoothed": (
        {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"},
        "quant_algo W4A16_AWQ is not supported, since it scales activations as well",
    ),
    "block": (FP8 | {"weight_block_size": [128]}, "block size [128] is not two positive"),
    "no block": (FP8 | {"weight_block_size": [0, 128]}, "block size [0, 128] is not two positive"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "text"), VARIANTS.values(), ids=VARIANTS)
def test_unsupported_variants_are_refused(tmp_path: Path, settings: Any, text: str) -> None:
    (message,) = refusal(tmp_path, settings, {"a": ("U8", np.ones(1, "u1"))})
    assert text in message


def test_floats_are_read_even_if_the_config_names_an_unsupported_method(
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
        "l.{0-2}.up.weight is stored as F8_E4M3, but config.json has no quantization_config",
    ),
    "gptq without settings": (
        None,
        layers(gptq(4)),
        "l.{0-2}.up.qweight is stored as I32, but config.json has no quantization_config",
    ),
    "scales missing": (
        FP8,
        without(layers(FP8_PACK), "_scale_inv"),
        "l.{0-2}.up.weight is stored as F8_E4M3, but its scales *_scale_inv are missing",
    ),
    "scales of a channel missing": (
        compressed("float-quantized"),
        without(layers(by_rows("F8_E4M3", True)), "_scale"),
        "l.{0-2}.up.weight is stored as F8_E4M3, but its scales *_scale are missing",
    ),
    "another block": (
        FP8 | {"weight_block_size": [128, 128]},
        layers(FP8_PACK),
        "l.{0-2}.up.weight is [64, 96], but its scales are [2, 3], which does not fit: config.json"
        " states blocks of [128, 128]",
    ),
    "groups that are unequal": (
        compressed("float-quantized"),
        layers(fp8_blocks(1, 20)),
        "l.{0-2}.up.weight is [64, 96], but its scales are [64, 5], which does not fit",
    ),
    "bytes as scales": (
        FP8,
        layers(fp8_blocks(32, 32, "U8")),
        "l.{0-2}.up.weight has scales stored as U8, which is not supported without scale_fmt ue8m0",
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
        "l.{0-2}.up.weight is packed as [64, 12], which is not possible for [64, 700]",
    ),
    "another number of rows": (
        INT4,
        layers(integers(4, 32)) | {f"l.{i}.up.weight_shape": ("I64", np.array([65, 96]))
                                   for i in range(3)},
        "l.{0-2}.up.weight is packed as [64, 12], which does not fit *_shape [65, 96]",
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
    "zeros of other bits": (
        gptq_settings(4),
        layers(gptq(4)) | {k: t for k, t in layers(gptq(8)).items() if k.endswith("qzeros")},
        "l.{0-2}.up.weight has 48 inputs and scales of 3 groups, which does not fit group_size 32",
    ),
    "zeros of an odd width": (
        gptq_settings(4),
        layers(gptq(4))
        | {k: (d, x[:, :7]) for k, (d, x) in layers(gptq(4)).items() if k.endswith("qzeros")},
        "l.{0-2}.up.weight has qweight [12, 64], qzeros [3, 7], scales [3, 64], which do not fit",
    ),
    "another group size": (
        gptq_settings(4) | {"group_size": 64},
        layers(gptq(4)),
        "l.{0-2}.up.weight has 96 inputs and scales of 3 groups, which does not fit group_size 64",
    ),
    "awq as gptq": (
        gptq_settings(4),
        layers(awq),
        "l.{0-2}.up.weight has qweight [96, 8], qzeros [3, 8], scales [3, 64], which do not fit",
    ),
    "twice": (
        gptq_settings(4),
        layers(gptq(4)) | {"l.1.up.weight": ("F16", np.zeros((64, 96), np.float16))},
        "l.1.up.weight is stored twice, quantized and as floats; remove one of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "tensors", "text"), FAULTS.values(), ids=FAULTS)
def test_parts_that_form_no_weight_are_refused_in_one_line(
    tmp_path: Path, settings: Any, tensors: Stored, text: str
) -> None:
    (message,) = refusal(tmp_path, settings, tensors)
    assert text in message


def test_different_faults_are_reported_together(tmp_path: Path) -> None:
    single = {"m.weight": ("F8_E5M2", np.zeros((2, 2), np.uint8))}
    messages = refusal(tmp_path, FP8, without(layers(FP8_PACK), "1.up.weight_scale_inv") | single)
    assert len(messages) == 2
    assert messages[0].startswith("l.1.up.weight is stored as F8_E4M3")
    assert messages[1].startswith("m.weight is stored as F8_E5M2")


def test_scales_of_activations_are_ignored_with_the_reason(tmp_path: Path) -> None:
    tensors = layers(by_rows("F8_E4M3", True), n=1)
    tensors |= {"l.0.k_scale": ("F32", np.ones(1, "f4")), "l.0.k_proj": ("F32", np.ones(1, "f4"))}
    found = weights(tmp_path, compressed("float-quantized"), tensors)
    assert set(found.ignored) == {"l.0.up.input_scale", "l.0.k_scale"}
    assert all("activations" in reason for reason in found.ignored.values())
    assert set(found.tensors) - set(found.ignored) == {"l.0.up.weight", "l.0.k_proj"}


def test_settings_of_vision_models_and_of_modelopt_are_found(tmp_path: Path) -> None:
    tensors = layers(FP8_PACK, n=1)
    config = {"text_config": {"quantization_config": FP8}}
    folder = write_stored(tmp_path / "vision", config, tensors)
    assert list(unpack(open_checkpoint(folder)).tensors) == ["l.0.up.weight"]
    folder = write_stored(tmp_path / "modelopt", {}, layers(nvfp4(True), n=1))
    text = '{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}'
    (folder / "hf_quant_config.json").write_text(text)
    assert list(unpack(open_checkpoint(folder)).tensors) == ["l.0.up.weight"]


def test_layers_may_differ_in_the_number_of_bits(tmp_path: Path) -> None:
    tensors = {}
    expected = {}
    for i, bits in enumerate((2, 4, 8)):
        name = f"l.{i}.weight"
        stored, expected[name] = gptq(bits, act_order=True)(name, (64, 96), RNG)
        tensors |= stored
    found = weights(tmp_path, gptq_settings(4), tensors).tensors
    for name, value in expected.items():
        np.testing.assert_array_equal(read_weights(found[name].source(), 0, 64), value)


def test_gptq_version_1_is_version_2_with_one_subtracted_from_every_word(tmp_path: Path) -> None:
    """Even if a zero of 0 borrows from the next field, as in GPTQModel."""
    stored, value = gptq(4, v2=True)("l.weight", (64, 96), RNG)
    assert (stored["l.qzeros"][1].view(np.uint32) & 15 == 0).any()
    less = stored["l.qzeros"][1].view(np.uint32) - np.uint32(0x11111111)
    stored["l.qzeros"] = ("I32", less)
    found = weights(tmp_path, gptq_settings(4), stored).tensors["l.weight"].source()
    np.testing.assert_array_equal(read_weights(found, 0, 64), value)


@pytest.mark.parametrize("form", ["gptq act order", "int4 act order"])
@pytest.mark.parametrize("group", [-1, 3])
def test_a_group_without_scales_is_reported_when_it_is_read(
    tmp_path: Path, form: str, group: int
) -> None:
    tensors = layers(FORMATS[form].pack, n=1)
    name = next(n for n in tensors if n.endswith("g_idx"))
    tensors[name][1][5] = group
    (weight,) = (
        w for n, w in weights(tmp_path, FORMATS[form].settings, tensors).tensors.items()
        if n.endswith("weight")
    )  # fmt: skip
    message = rf"{re.escape(name)} has groups -?\d to \d, but the scales have 3 groups;"
    with pytest.raises(CheckpointError, match=message):
        read_weights(weight.source(), 0, 1)


def test_a_wrong_shape_tensor_is_reported_when_its_rows_are_read(tmp_path: Path) -> None:
    tensors = layers(integers(4, 32))
    tensors["l.2.up.weight_shape"] = ("I64", np.array([64, 95]))
    found = weights(tmp_path, INT4, tensors).tensors
    read_weights(found["l.1.up.weight"].source(), 0, 64)
    with pytest.raises(CheckpointError, match=r"l.2.up.weight_shape is \[64, 95\], but the"):
        read_weights(found["l.2.up.weight"].source(), 0, 64)


def test_experts_of_packed_integers_and_of_fp4_may_be_stacked(tmp_path: Path) -> None:
    """One scale for all matrices, one for each matrix, and several for each matrix."""
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
