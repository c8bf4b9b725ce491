"""DeepSeek-V3 in FP8 with a scale per block, as published, gives the same file as in BF16.

The tiny V3's matrices have up to 144 rows, not a multiple of 128, so that some blocks are partial.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from agreement import load_reference
from packers import FORMATS, Stored, write_stored

import dynquant
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import CheckpointError

FP8 = FORMATS["fp8 128x128 F32"]


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Round to the nearest BF16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def both(folder: Path) -> tuple[Path, Path]:
    """Write the tiny V3 with matrices of random codes, in FP8 and as the same values in BF16."""
    source = load_reference("deepseek-v3").folder
    config = json.loads((source / "config.json").read_text("utf-8"))
    rng = np.random.default_rng(3)
    packed: Stored = {}
    plain: Stored = {}
    partial = 0
    for name, tensor in open_checkpoint(source).tensors.items():
        raw = np.empty(tensor.n_bytes, np.uint8)
        tensor.file.read(tensor.offset, raw)
        dtype = {"BF16": "<u2", "F32": "<f4"}[tensor.dtype]
        packed[name] = plain[name] = (tensor.dtype, raw.view(dtype).reshape(tensor.shape))
        if name.endswith("proj.weight") or "kv_a_proj" in name:
            del packed[name]
            stored, value = FP8.pack(name, tensor.shape, rng)
            packed |= stored
            plain[name] = ("BF16", bfloat16(value))
            partial += any(n > 128 and n % 128 for n in tensor.shape)
    assert partial > 3
    folders = folder / "fp8" / "model", folder / "bf16" / "model"
    write_stored(folders[0], config | {"quantization_config": FP8.settings}, packed)
    write_stored(folders[1], config, plain)
    for made in folders:
        for file in source.glob("tokenizer*"):
            shutil.copy(file, made)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("mla", ["split", "merged"])
def test_fp8_and_bf16_checkpoints_give_the_same_file(mla: str, tmp_path: Path) -> None:
    folders = both(tmp_path)
    for folder in folders:
        model = dynquant.load_model(folder, mla="merged" if mla == "merged" else "split")
        dynquant.convert(model, folder / "out.gguf", recipe="bf16", threads=2)
    fp8, bf16 = ((folder / "out.gguf").read_bytes() for folder in folders)
    assert fp8 == bf16


def test_missing_scales_are_named(tmp_path: Path) -> None:
    folder, _ = both(tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    kept: Stored = {}
    for name, tensor in open_checkpoint(folder).tensors.items():
        if name.endswith("experts.1.up_proj.weight_scale_inv"):
            continue
        raw = np.empty(tensor.n_bytes, np.uint8)
        tensor.file.read(tensor.offset, raw)
        dtype = {"BF16": "<u2", "F32": "<f4", "F8_E4M3": "u1"}[tensor.dtype]
        kept[name] = (tensor.dtype, raw.view(dtype).reshape(tensor.shape))
    write_stored(folder, config, kept)
    with pytest.raises(CheckpointError) as error:
        dynquant.load_model(folder)
    assert "experts.1.up_proj.weight" in "\n".join(error.value.messages)
