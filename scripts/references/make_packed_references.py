"""Make tests/references/packed: one weight in each quantized format, dequantized by its library.

    pip install '.[references]' auto-round compressed-tensors gptqmodel nvidia-modelopt
    python scripts/references/make_packed_references.py [CASE ...]

tests/references/packed/<case>/ is a checkpoint of one tensor, `layer.weight` or `layer.experts`:

    config.json         its quantization_config
    model.safetensors   the stored tensors of the format
    expected.npy        the weight dequantized by the library: float32 or float16, or the bits of
                        bfloat16 as uint16

The libraries: compressed_tensors (BaseCompressor.decompress), transformers (Fp8Dequantize,
convert_moe_packed_tensors), gptqmodel (TorchLinear.dequantize_weight, dequantize_gemm of AWQ),
modelopt (FP8QTensor, NVFP4QTensor), auto-round (its QuantLinear on unit vectors). Sizes are
unusual, so that a wrong stride or order is noticed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "tests" / "references" / "packed"

Made = tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor]
"""quantization_config, stored tensors, the weight dequantized by the library."""


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return heavy-tailed weights, as in models."""
    values = 0.05 * np.random.default_rng(seed).standard_t(4, shape)
    return torch.from_numpy(values.astype(np.float32))


def blocks_of(w: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the largest magnitude of each block, also of partial blocks."""
    pad = torch.nn.functional.pad(w, (0, -w.shape[-1] % columns, 0, -w.shape[-2] % rows))
    grid = pad.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    return grid.abs().amax((-1, -3))


def spread(scale: torch.Tensor, rows: int, columns: int, shape: torch.Size) -> torch.Tensor:
    """Repeat scales of blocks for each weight."""
    scale = scale.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return scale[..., : shape[-2], : shape[-1]]


def fp8_blocks(
    rows: int, columns: int, kind: str = "f32", shape: tuple[int, ...] = (40, 72)
) -> Made:
    """DeepSeek's FP8; partial blocks are padded for the library and cut again."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    w = weight(*shape)
    scale = blocks_of(w, rows, columns) / 448
    if kind == "ue8m0":
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    codes = (w / spread(scale, rows, columns, w.shape)).to(torch.float8_e4m3fn)
    stored = scale.to(
        {"f32": torch.float32, "bf16": torch.bfloat16}.get(kind, torch.float8_e8m0fnu)
    )
    full = torch.nn.functional.pad(codes.float(), (0, -shape[-1] % columns, 0, -shape[-2] % rows))
    library = Fp8Dequantize(None)
    expected = library._dequantize_one(full.to(torch.float8_e4m3fn), stored, torch.float32)
    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [rows, columns]}
    if kind == "ue8m0":
        config["scale_fmt"] = "ue8m0"
    name = "layer.weight" if len(shape) == 2 else "layer.experts"
    parts = {name: codes, f"{name}_scale_inv": stored}
    return config, parts, expected[..., : shape[-2], : shape[-1]]


def compressed(
    name: str, shape: tuple[int, int] = (40, 96), scales: str = "float32", **weights: Any
) -> Made:
    """A format of compressed-tensors, packed and unpacked by that library."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=name)
    w = weight(*shape, seed=len(name) + sum(map(ord, str(weights))))
    state = {"weight": w, **_parameters(w, args, getattr(torch, scales))}
    compressor = BaseCompressor.get_value_from_registry(name)
    packed = compressor.compress(state, scheme)
    expected = compressor.decompress(packed, scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": name,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    return config, {f"layer.{n}": t for n, t in packed.items()}, expected


def _parameters(w: torch.Tensor, args: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return scales and zero points for a weight in the shapes of the format."""
    n, n_per_row = w.shape
    rows, columns = {
        "tensor": (n, n_per_row),
        "channel": (1, n_per_row),
        "block": tuple(args.block_structure or (1, 1)),
    }.get(args.strategy, (1, args.group_size or n_per_row))
    most = blocks_of(w, rows, columns)
    is_float = args.type == "float"
    range_ = {4: 6.0, 8: 448.0}[args.num_bits] if is_float else 2 ** (args.num_bits - 1) - 0.5
    made: dict[str, torch.Tensor] = {}
    scale = most / range_
    if args.scale_dtype in (torch.uint8,):
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    if args.strategy == "tensor_group":
        made["weight_global_scale"] = 448 * 6 / w.abs().max().reshape(1)
        scale = (scale * made["weight_global_scale"]).to(torch.float8_e4m3fn).float()
    if args.strategy == "tensor":
        scale = scale.reshape(1)
    made["weight_scale"] = scale.to(dtype)
    if not args.symmetric:
        zero = torch.arange(scale.numel()).reshape(scale.shape) % 7 - 3
        made["weight_zero_point"] = zero.to(torch.int8)
    return made


def gptq(bits: int, *, desc_act: bool = False, v2: bool = False) -> Made:
    """GPTQ, packed and unpacked by GPTQModel."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    n, n_per_row, size = 64, 96, 32
    rng = np.random.default_rng(bits)
    linear = torch.nn.Linear(n_per_row, n, bias=False)
    linear.weight.data = weight(n, n_per_row, seed=bits)
    groups = np.arange(n_per_row) // size
    groups = torch.from_numpy((rng.permutation(groups) if desc_act else groups).astype(np.int32))
    most = 2**bits - 1
    scale = (0.3 / most * (1 + torch.from_numpy(rng.random((n, n_per_row // size))))).half()
    zero = torch.from_numpy(rng.integers(1, most + 1, scale.shape).astype(np.float32))
    layer = TorchLinear(
        bits=bits,
        group_size=size,
        sym=False,
        desc_act=desc_act,
        in_features=n_per_row,
        out_features=n,
        bias=False,
    )
    layer.pack(linear, scale.float(), zero, groups)
    stored = {f"layer.{k}": getattr(layer, k).clone() for k in ("qweight", "qzeros", "scales")}
    stored["layer.g_idx"] = groups
    if not v2:  # the library only computes with version 2
        convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "desc_act": desc_act,
        "sym": False,
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
    }
    if not desc_act:
        del stored["layer.g_idx"]
    layer.post_init()
    return config, stored, layer.dequantize_weight().T.contiguous()


def awq() -> Made:
    """AWQ in its GEMM layout, packed and unpacked by AutoAWQ's code, which GPTQModel contains."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm, pack_awq

    n, n_per_row, size = 72, 96, 32
    rng = np.random.default_rng(9)
    codes = torch.from_numpy(rng.integers(0, 16, (n_per_row, n)).astype(np.int32))
    zeros = torch.from_numpy(rng.integers(0, 16, (n_per_row // size, n)).astype(np.int32))
    scales = torch.from_numpy(0.02 * rng.random(zeros.shape)).half()
    qweight, qzeros = pack_awq(codes, zeros, 4)
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": size,
        "zero_point": True,
        "version": "gemm",
    }
    stored = {"layer.qweight": qweight, "layer.qzeros": qzeros, "layer.scales": scales}
    return config, stored, dequantize_gemm(qweight, qzeros, scales, 4, size).T.contiguous()


def auto_round(form: str, bits: int) -> Made:
    """AutoRound's own format, with zeros as they are (auto_round) or minus one (auto_gptq)."""
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    n, n_per_row, size = 64, 96, 32
    rng = np.random.default_rng(bits + 20)
    linear = torch.nn.Linear(n_per_row, n, bias=False)
    linear.weight.data = weight(n, n_per_row, seed=bits)
    most = 2**bits - 1
    scale = (0.3 / most * (1 + torch.from_numpy(rng.random((n, n_per_row // size))))).half()
    zero = torch.from_numpy(rng.integers(1, most + 1, scale.shape).astype(np.float32))
    codes = (linear.weight.data / scale.float().repeat_interleave(size, 1)).round()
    codes = (codes + zero.repeat_interleave(size, 1)).clamp(0, most)
    linear.weight.data = codes - zero.repeat_interleave(size, 1)
    linear.weight.data *= scale.float().repeat_interleave(size, 1)  # pack() does not limit codes
    module = qlinear_torch_zp if form == "auto_round:auto_gptq" else qlinear_torch
    layer = module.QuantLinear(bits, size, n_per_row, n, False, weight_dtype=torch.float32)
    layer.device = "cpu"
    layer.pack(linear, scale.float(), zero.clone(), device="cpu")
    stored = {f"layer.{k}": getattr(layer, k).clone() for k in ("qweight", "qzeros", "scales")}
    config = {
        "quant_method": "auto-round",
        "packing_format": form,
        "bits": bits,
        "group_size": size,
        "sym": False,
        "data_type": "int",
        "autoround_version": "0.16.1",
    }
    # The product of code and scale is of half floats.
    return config, stored, layer(torch.eye(n_per_row)).half().T.contiguous()


def modelopt_fp8() -> Made:
    """FP8 of ModelOpt: one scale for a matrix."""
    from modelopt.torch.quantization.qtensor import FP8QTensor

    w = weight(40, 72, seed=5)
    scale = w.abs().max() / 448
    quantized, _ = FP8QTensor.quantize(w, scales=scale)
    expected = quantized.dequantize(torch.float32, scale=scale)
    stored = {
        "layer.weight": quantized._quantized_data,
        "layer.weight_scale": scale,
        "layer.input_scale": torch.tensor(0.5),
    }
    return {"quant_method": "modelopt", "quant_algo": "FP8"}, stored, expected


def modelopt_nvfp4() -> Made:
    """NVFP4 of ModelOpt: E4M3 scales of 16 weights, and one scale for these scales."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    w = weight(40, 96, seed=6)
    quantized, scale, double = NVFP4QTensor.quantize(w, 16)
    expected = quantized.dequantize(
        torch.float32, scale=scale, double_scale=double, block_sizes={-1: 16}
    )
    stored = {
        "layer.weight": quantized._quantized_data,
        "layer.weight_scale": scale,
        "layer.weight_scale_2": double,
    }
    return {"quant_method": "modelopt", "quant_algo": "NVFP4"}, stored, expected


def gpt_oss() -> Made:
    """MXFP4 of gpt-oss, unpacked by transformers, whose transposition is reversed."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(11)
    blocks = torch.from_numpy(rng.integers(0, 256, (3, 10, 4, 16)).astype(np.uint8))
    scales = torch.from_numpy(rng.integers(115, 125, (3, 10, 4)).astype(np.uint8))
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    stored = {"layer.experts_blocks": blocks, "layer.experts_scales": scales}
    return {"quant_method": "mxfp4"}, stored, expected.transpose(1, 2).contiguous()


def bitnet(kind: str) -> Made:
    """Ternary weights of BitNet: packed, or rounded by transformers while the model runs."""
    torch._dynamo.config.disable = True  # its functions are compiled otherwise
    from transformers.integrations.bitnet import WeightQuant, pack_weights, unpack_weights

    w = weight(44, 192, seed=len(kind)).bfloat16()
    config = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    if kind == "online":
        expected = WeightQuant.apply(w)
        return config | {"quantization_mode": "online"}, {"layer.weight": w}, expected
    codes = torch.clamp(torch.round(w.float() / 0.05), -1, 1)
    packed = pack_weights(codes.clone())
    scale = torch.tensor([0.0377 if kind == "auto" else 26.3]).bfloat16()
    stored = {"layer.weight": packed, "layer.weight_scale": scale}
    unpacked = unpack_weights(packed, dtype=torch.float32)
    if kind == "auto":  # the product is multiplied by the scale
        return config, stored, unpacked * scale.float()
    return {"quant_method": "bitnet"}, stored, unpacked / scale.float()  # it is divided by it


INT = {"type": "int", "symmetric": True}
FLOAT = {"type": "float", "symmetric": True}

CASES: dict[str, Callable[[], Made]] = {
    "fp8-16x24": lambda: fp8_blocks(16, 24),
    "fp8-32x32": lambda: fp8_blocks(32, 32),
    "fp8-1x24": lambda: fp8_blocks(1, 24),
    "fp8-128x128": lambda: fp8_blocks(128, 128, shape=(130, 136)),
    "fp8-bf16-scales": lambda: fp8_blocks(32, 32, "bf16"),
    "fp8-ue8m0": lambda: fp8_blocks(32, 32, "ue8m0"),
    "fp8-stacked": lambda: fp8_blocks(16, 16, shape=(3, 24, 40)),
    "ct-fp8-tensor": lambda: compressed("float-quantized", num_bits=8, strategy="tensor", **FLOAT),
    "ct-fp8-channel": lambda: compressed(
        "float-quantized", scales="bfloat16", num_bits=8, strategy="channel", **FLOAT
    ),
    "ct-fp8-block": lambda: compressed(
        "float-quantized", num_bits=8, strategy="block", block_structure=[16, 32], **FLOAT
    ),
    "ct-mxfp8": lambda: compressed(
        "mxfp8-quantized",
        num_bits=8,
        strategy="group",
        group_size=32,
        scale_dtype="torch.uint8",
        **FLOAT,
    ),
    "ct-int8-channel": lambda: compressed("int-quantized", num_bits=8, strategy="channel", **INT),
    "ct-int8-zeros": lambda: compressed(
        "int-quantized", num_bits=8, strategy="channel", type="int", symmetric=False
    ),
    "ct-int4-groups": lambda: compressed(
        "pack-quantized",
        scales="bfloat16",
        num_bits=4,
        strategy="group",
        group_size=32,
        **INT,
    ),
    "ct-int4-zeros": lambda: compressed(
        "pack-quantized",
        scales="bfloat16",
        num_bits=4,
        strategy="group",
        group_size=16,
        type="int",
        symmetric=False,
    ),
    "ct-int3-channel": lambda: compressed(
        "pack-quantized", (37, 75), num_bits=3, strategy="channel", **INT
    ),
    "ct-int8-zeros-packed": lambda: compressed(
        "pack-quantized", (37, 70), num_bits=8, strategy="channel", type="int", symmetric=False
    ),
    "ct-nvfp4": lambda: compressed(
        "nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16, **FLOAT
    ),
    "ct-mxfp4": lambda: compressed(
        "mxfp4-pack-quantized",
        num_bits=4,
        strategy="group",
        group_size=32,
        scale_dtype="torch.uint8",
        **FLOAT,
    ),
    "modelopt-fp8": modelopt_fp8,
    "modelopt-nvfp4": modelopt_nvfp4,
    "gpt-oss": gpt_oss,
    **{f"bitnet-{kind}": lambda kind=kind: bitnet(kind) for kind in ("packed", "auto", "online")},
    **{f"gptq-{bits}": lambda bits=bits: gptq(bits) for bits in (2, 3, 4, 8)},
    "gptq-4-desc-act": lambda: gptq(4, desc_act=True),
    "gptq-3-desc-act": lambda: gptq(3, desc_act=True),
    "gptq-4-v2": lambda: gptq(4, v2=True),
    "awq": awq,
    **{f"auto-round-{bits}": lambda bits=bits: auto_round("auto_round", bits) for bits in (2, 3)},
    "auto-round-4-gptq": lambda: auto_round("auto_round:auto_gptq", 4),
}


def write(name: str, made: Made) -> None:
    """Write the folder of one case."""
    config, stored, expected = made
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = json.dumps({"quantization_config": config}, indent=1)
    (folder / "config.json").write_text(text + "\n")
    save_file({n: t.contiguous() for n, t in stored.items()}, folder / "model.safetensors")
    bits = expected.view(torch.uint16) if expected.dtype == torch.bfloat16 else expected
    np.save(folder / "expected.npy", bits.numpy())
    print(f"{name}: {expected.dtype} {list(expected.shape)}")


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        write(name, CASES[name]())
