"""Random weights in each quantized format, and their values by the definition of the format.

Uses numpy only and nothing of dynquant: bits are packed by np.packbits.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Stored = dict[str, tuple[str, np.ndarray]]
"""Tensors by name: the dtype of safetensors, and the values."""

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def small_float(exponent_bits: int, fraction_bits: int, bias: int) -> np.ndarray:
    """The value of every code of an 8-bit float; special codes are treated as numbers."""
    code = np.arange(1 << (1 + exponent_bits + fraction_bits))
    fraction = (code & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    exponent = code >> fraction_bits & ((1 << exponent_bits) - 1)
    sign = np.where(code >> (exponent_bits + fraction_bits) & 1, -1.0, 1.0)
    normal = (1 + fraction) * 2.0 ** (exponent - bias)
    return (sign * np.where(exponent, normal, fraction * 2.0 ** (1 - bias))).astype(np.float32)


E4M3 = small_float(4, 3, 7)
E5M2 = small_float(5, 2, 15)
E2M1 = np.concatenate([FP4, -FP4])


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [n, k] without gaps, low bits first, in 32-bit words [n, ceil(k * bits / 32)]."""
    each = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1, bitorder="little")[..., :bits]
    flat = each.reshape(len(codes), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.packbits(flat, axis=-1, bitorder="little").view("<i4")


def pack_pairs(codes: np.ndarray) -> np.ndarray:
    """Codes of four bits, two to a byte, the first in the low half."""
    return (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)


def spread(scale: np.ndarray, rows: int, columns: int, shape: tuple[int, int]) -> np.ndarray:
    return scale.repeat(rows, 0).repeat(columns, 1)[: shape[0], : shape[1]]


def bf16_bits(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def e4m3_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.integers(0, 127, shape) | rng.integers(0, 2, shape) << 7).astype(np.uint8)


def scales(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (0.001 + 0.002 * rng.random(shape)).astype(np.float32)


# ---- one weight in each format: name, shape, rng -> stored tensors and values --------------------

Pack = Callable[[str, tuple[int, int], np.random.Generator], tuple[Stored, np.ndarray]]


def fp8_blocks(rows: int, columns: int, scale_dtype: str = "F32") -> Pack:
    def pack(
        name: str, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Stored, np.ndarray]:
        codes = e4m3_codes(rng, shape)
        scale = scales(rng, -(-shape[0] // rows), -(-shape[1] // columns))
        stored = scale
        if scale_dtype == "BF16":
            stored = bf16_bits(scale)
            scale = bf16_values(stored)
        elif scale_dtype in ("F8_E8M0", "U8"):
            stored = rng.integers(110, 125, scale.shape).astype(np.uint8)
            scale = np.exp2(stored.astype(np.float32) - 127)
        value = E4M3[codes] * spread(scale, rows, columns, shape)
        return {name: ("F8_E4M3", codes), f"{name}_scale_inv": (scale_dtype, stored)}, value

    return pack


def by_rows(dtype: str, per_row: bool, zeros: bool = False) -> Pack:
    def pack(
        name: str, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Stored, np.ndarray]:
        scale = scales(rng, shape[0], 1) if per_row else scales(rng, 1)
        extra: Stored = {name.replace("weight", "input_scale"): ("F32", scales(rng, 1))}
        if dtype == "I8":
            codes = rng.integers(-128, 128, shape).astype(np.int8)
            number = codes.astype(np.float32)
            if zeros:
                zero = rng.integers(-20, 20, scale.shape).astype(np.int8)
                extra[f"{name}_zero_point"] = ("I8", zero)
                number = number - zero
        elif dtype == "F8_E5M2":
            codes = rng.integers(0, 120, shape).astype(np.uint8)
            number = E5M2[codes]
        else:
            codes = e4m3_codes(rng, shape)
            number = E4M3[codes]
        return {name: (dtype, codes), f"{name}_scale": ("F32", scale), **extra}, number * scale

    return pack


def nvfp4(modelopt: bool) -> Pack:
    def pack(
        name: str, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Stored, np.ndarray]:
        codes = rng.integers(0, 16, shape)
        scale = rng.integers(1, 127, (shape[0], shape[1] // 16)).astype(np.uint8)
        of_all = np.float32(0.003 if modelopt else 700.0)
        real = E4M3[scale] * of_all if modelopt else E4M3[scale] / of_all
        stored: Stored = {f"{name}_scale": ("F8_E4M3", scale)}
        if modelopt:
            stored |= {name: ("U8", pack_pairs(codes)), f"{name}_scale_2": ("F32", of_all)}
        else:
            one = of_all.reshape(1)
            stored |= {
                f"{name}_packed": ("U8", pack_pairs(codes)),
                f"{name}_global_scale": ("F32", one),
            }
        return stored, E2M1[codes] * spread(real, 1, 16, shape)

    return pack


def mxfp4(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
    codes = rng.integers(0, 16, shape)
    scale = rng.integers(115, 125, (shape[0], shape[1] // 32)).astype(np.uint8)
    value = E2M1[codes] * spread(np.exp2(scale.astype(np.float32) - 127), 1, 32, shape)
    stored: Stored = {
        f"{name}_packed": ("U8", pack_pairs(codes)),
        f"{name}_scale": ("U8", scale),
    }
    return stored, value + np.float32(0)  # ggml's blocks have no minus zero


def integers(bits: int, group: int | None, *, zeros: bool = False, act_order: bool = False) -> Pack:
    def pack(
        name: str, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Stored, np.ndarray]:
        codes = rng.integers(0, 1 << bits, shape)
        size = group or shape[1]
        bits_of = bf16_bits(scales(rng, shape[0], shape[1] // size))
        of = np.arange(shape[1]) // size
        stored: Stored = {
            f"{name}_packed": ("I32", pack_bits(codes, bits)),
            f"{name}_scale": ("BF16", bits_of),
            f"{name}_shape": ("I64", np.array(shape)),
        }
        zero = np.full(bits_of.shape, 1 << (bits - 1))
        if zeros:
            zero = rng.integers(0, 1 << bits, bits_of.shape)
            stored[f"{name}_zero_point"] = ("I32", pack_bits(zero.T, bits).T)
        if act_order:
            of = rng.permutation(of)
            stored[f"{name}_g_idx"] = ("I32", of.astype(np.int32))
        scale = bf16_values(bits_of)
        return stored, (codes - zero[:, of]).astype(np.float32) * scale[:, of]

    return pack


def gptq(bits: int, *, act_order: bool = False, v2: bool = False) -> Pack:
    def pack(
        name: str, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Stored, np.ndarray]:
        base, groups = name.removesuffix("weight"), shape[1] // 32
        codes = rng.integers(0, 1 << bits, shape)
        zero = rng.integers(0 if v2 else 1, 1 << bits, (groups, shape[0]))
        scale = scales(rng, groups, shape[0]).astype(np.float16)
        of = np.arange(shape[1]) // 32
        stored: Stored = {
            f"{base}qweight": ("I32", pack_bits(codes, bits).T),
            f"{base}qzeros": ("I32", pack_bits(zero if v2 else zero - 1, bits)),
            f"{base}scales": ("F16", scale),
            f"{base}bias": ("F16", np.zeros(shape[0], np.float16)),
        }
        if act_order:
            of = rng.permutation(of)
            stored[f"{base}g_idx"] = ("I32", of.astype(np.int32))
        value = (codes - zero[of].T).astype(np.float32) * scale.astype(np.float32)[of].T
        return stored, value

    return pack


def awq(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
    base, groups = name.removesuffix("weight"), shape[1] // 32
    codes, zero = (rng.integers(0, 16, (n, shape[0])) for n in (shape[1], groups))
    scale = scales(rng, groups, shape[0]).astype(np.float16)
    qweight, qzeros = (
        pack_bits(x.reshape(len(x), -1, 8)[:, :, AWQ_ORDER].reshape(x.shape), 4)
        for x in (codes, zero)
    )
    value = (codes - zero.repeat(32, 0)) * scale.astype(np.float32).repeat(32, 0)
    stored: Stored = {
        f"{base}qweight": ("I32", qweight),
        f"{base}qzeros": ("I32", qzeros),
        f"{base}scales": ("F16", scale),
    }
    return stored, value.T.astype(np.float32)


@dataclass(frozen=True)
class Format:
    """A quantization format: its settings in config.json, and a function that packs a weight."""

    settings: dict[str, Any]
    pack: Pack


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def gptq_settings(bits: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": False, **more}


FORMATS: dict[str, Format] = {
    **{
        f"fp8 {rows}x{columns} {dtype}": Format(
            {
                "quant_method": "fp8",
                "weight_block_size": [rows, columns],
                **({"scale_fmt": "ue8m0"} if dtype == "U8" else {}),
            },
            fp8_blocks(rows, columns, dtype),
        )
        for rows, columns, dtype in (
            (128, 128, "F32"),
            (48, 40, "F32"),
            (32, 32, "F8_E8M0"),
            (1, 128, "BF16"),
            (32, 32, "U8"),
        )
    },
    "fp8 of a tensor": Format({"quant_method": "modelopt"}, by_rows("F8_E4M3", False)),
    "fp8 e5m2": Format(compressed("naive-quantized"), by_rows("F8_E5M2", True)),
    "fp8 of a channel": Format(
        compressed("float-quantized", strategy="channel"), by_rows("F8_E4M3", True)
    ),
    "int8": Format(compressed("int-quantized", strategy="channel"), by_rows("I8", True)),
    "int8 with zeros": Format(compressed("int-quantized"), by_rows("I8", True, True)),
    "nvfp4 of modelopt": Format({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4(True)),
    "nvfp4": Format(compressed("nvfp4-pack-quantized"), nvfp4(False)),
    "mxfp4": Format(compressed("mxfp4-pack-quantized"), mxfp4),
    "int4": Format(
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=32), integers(4, 32)
    ),
    "int4 with zeros": Format(
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=16, symmetric=False),
        integers(4, 16, zeros=True),
    ),
    "int4 act order": Format(
        compressed("pack-quantized", num_bits=4), integers(4, 32, act_order=True)
    ),
    "int8 packed": Format(compressed("pack-quantized", num_bits=8), integers(8, None)),
    "int5 with zeros": Format(
        compressed("pack-quantized", num_bits=5), integers(5, 32, zeros=True)
    ),
    **{f"gptq {bits}": Format(gptq_settings(bits), gptq(bits)) for bits in (2, 3, 4, 8)},
    "gptq act order": Format(gptq_settings(4, desc_act=True), gptq(4, act_order=True)),
    "gptq v2": Format(gptq_settings(3, checkpoint_format="gptq_v2"), gptq(3, v2=True)),
    "awq": Format({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq),
}


def stored_in(folder: Path) -> Stored:
    """Return the tensors of a checkpoint with their dtypes, the numbers as they are stored."""
    found: Stored = {}
    kinds = {"BF16": np.uint16, "F32": np.float32, "F16": np.float16, "I64": np.int64}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        n = int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8 : 8 + n]).items():
            if name != "__metadata__":
                start, stop = (8 + n + offset for offset in entry["data_offsets"])
                values = np.frombuffer(content[start:stop], kinds[entry["dtype"]])
                found[name] = (entry["dtype"], values.reshape(entry["shape"]))
    return found


def write_stored(folder: Path, config: dict[str, Any], tensors: Stored) -> Path:
    """Write a checkpoint of tensors in any dtype of safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {}
    content = b""
    for name, (dtype, values) in tensors.items():
        start = len(content)
        content += np.ascontiguousarray(values).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [start, len(content)],
        }
        assert len(content) - start == prod(values.shape) * values.itemsize
    text = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)
    return folder
