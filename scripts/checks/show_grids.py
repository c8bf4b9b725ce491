"""Checkpoints that are trained for a quant type: the type that `keep: true` gives, and its error.

    python scripts/checks/show_grids.py [--rows N] [--seed S]

Each line is a kind of checkpoint with made-up weights of 4096 columns. It is written as a file,
planned and converted with `keep: true`. The columns:

    keep       the type that dynquant chose; "stored" if it found no grid
    differ     the share of weights that are not equal after rounding to the stored type
    error      relative squared error against the stored weights, which are rounded themselves
    grid       the same against the weights before they were rounded: d * q
    ggml ...   the same three for llama.cpp's encoder of that type, without an imatrix

Blocks are decoded by the gguf package, or by llama.cpp for types that the package does not have.
Then the seconds that looking for grids takes for tensors of other weights, one row of each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.insert(0, str(TESTS / "support"))

from gridded import ROUND, fp4, integers, signs, ternary  # noqa: E402
from handmade import model, recipe  # noqa: E402
from oracles import ggml_encode, gguf_decode  # noqa: E402
from packers import FORMATS, write_stored  # noqa: E402

from dynquant.arch.base import ModelTensor  # noqa: E402
from dynquant.arrays import F32  # noqa: E402
from dynquant.checkpoint.packed import Packed, unpack  # noqa: E402
from dynquant.checkpoint.safetensors import open_checkpoint  # noqa: E402
from dynquant.conversion.write import convert_plan  # noqa: E402
from dynquant.measure.grids import find_grids  # noqa: E402
from dynquant.plan.make import make_plan  # noqa: E402
from dynquant.quants import ALL, encode  # noqa: E402
from dynquant.tensors import ShardFile, Stored  # noqa: E402
from dynquant.transforms import read_weights  # noqa: E402

N_PER_ROW = 4096
NAME = "blk.0.ffn_down.weight"
KEEP = recipe("F32", "rules: [{role: ffn_down, keep: true}]")


@dataclass(frozen=True)
class Made:
    """A tensor of a checkpoint.

    real:  the weights before they are rounded to the stored type
    x:     the weights as they are stored
    """

    tensor: ModelTensor
    stored: str
    real: F32
    x: F32


def plain(path: Path, real: F32, stored: str) -> Made:
    """Write floats of a type."""
    x = ROUND[stored](real)
    path.write_bytes(encode(x, stored).tobytes())
    rows = Stored(ShardFile(path), 0, x.shape, ALL[stored])
    return Made(ModelTensor(NAME, rows), stored, real, x)


def packed(path: Path, form: str, shape: tuple[int, int], seed: int) -> Made:
    """Write a weight of a quantized checkpoint."""
    stored, real = FORMATS[form].pack("l.weight", shape, np.random.default_rng(seed))
    config = {"quantization_config": FORMATS[form].settings}
    tensors = unpack(open_checkpoint(write_stored(path, config, stored))).tensors
    weight = next(w for n, w in tensors.items() if n == "l.weight")
    kept = weight.kept if isinstance(weight, Packed) else None
    x = read_weights(weight.source(), 0, shape[0])
    return Made(ModelTensor(NAME, weight.source(), kept), "F32", real.astype(np.float32), x)


Weights = Callable[[np.random.Generator, tuple[int, int]], F32]


def kinds() -> dict[str, tuple[str, Weights] | str]:
    """Return the kinds of checkpoints: a stored type and weights, or a quantized format."""

    def int4(lo: int, hi: int, group: int, scale: str) -> Weights:
        return lambda rng, shape: integers(rng, shape, lo, hi, group, scale)

    def of_three(group: int, scale: str) -> Weights:
        return lambda rng, shape: ternary(rng, shape, group or shape[1], scale)

    return {
        "QAT for Q4_0, -8..7, F16 scales, as F32": ("F32", int4(-8, 7, 32, "F16")),
        "QAT for Q4_0, -8..7, F16 scales, as BF16": ("BF16", int4(-8, 7, 32, "F16")),
        "QAT for Q4_0, -8..7, BF16 scales, as BF16": ("BF16", int4(-8, 7, 32, "BF16")),
        "QAT for INT4, -7..7, BF16 scales, as BF16": ("BF16", int4(-7, 7, 32, "BF16")),
        "QAT for INT4, -7..7, F32 scales, as BF16": ("BF16", int4(-7, 7, 32, "F32")),
        "QAT for INT4, -7..7, F32 scales, as F32": ("F32", int4(-7, 7, 32, "F32")),
        "QAT for INT4, groups of 128, as BF16": ("BF16", int4(-7, 7, 128, "BF16")),
        "INT4 of compressed-tensors, groups of 32": "int4",
        "GPTQ, 4 bits, with zeros": "gptq 4",
        "MXFP4 as BF16": ("BF16", fp4),
        "MXFP4 of compressed-tensors": "mxfp4",
        "NVFP4 of ModelOpt": "nvfp4 of modelopt",
        "ternary, one scale a row, as BF16": ("BF16", of_three(0, "BF16")),
        "ternary, groups of 128, as F16": ("F16", of_three(128, "F16")),
        "signs, groups of 128, as F16": (
            "F16",
            lambda rng, shape: signs(rng, shape, 128, "F16"),
        ),
        "BitNet, packed, reciprocal scale": "bitnet",
        "BitNet, packed, autobitlinear": "bitnet of autobitlinear",
        "other weights, as BF16": (
            "BF16",
            lambda rng, shape: (0.02 * rng.standard_t(4, shape)).astype(np.float32),
        ),
    }


def figures(made: Made, decoded: F32) -> str:
    """Return the share of weights that differ, and both errors."""
    differ = float((ROUND[made.stored](decoded) != made.x).mean())
    errors = [
        float(np.square(decoded.astype(np.float64) - x).sum() / np.square(x, dtype="f8").sum())
        for x in (made.x, made.real)
    ]
    return f"{differ:8.4f} {errors[0]:9.2g} {errors[1]:9.2g}"


def written(folder: Path, made: Made) -> tuple[str, F32 | None]:
    """Convert with `keep: true`; return the type and the weights, None for stored floats."""
    tensors = (made.tensor,)
    plan = make_plan(model(*tensors), KEEP, grids=find_grids(tensors, all_sources=True))
    (first, *others) = plan.tensors
    out = folder / "out.gguf"
    convert_plan(plan, out, threads=2, force=True)
    data = np.fromfile(out, np.uint8)[-plan.data_bytes :]
    blocks = data[first.offset : first.offset + first.n_bytes].reshape(first.shape[0], -1)
    if first.type.is_float:
        return "stored", None
    decoded = gguf_decode(blocks, first.type)
    if others:
        decoded = decoded * data[others[0].offset :][:4].view("<f4")
    return f"{first.type.name}{' * scale' if others else ''}", decoded


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    shape = (asked.rows, N_PER_ROW)
    heads = f"{'differ':>8} {'error':>9} {'grid':>9}"
    print(f"{'checkpoint':44} {'keep':14} {heads}   ggml {heads}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, what) in enumerate(kinds().items()):
            path = Path(folder) / str(number)
            if isinstance(what, str):
                made = packed(path, what, shape, asked.seed)
            else:
                rng = np.random.default_rng(asked.seed + number)
                made = plain(path, what[1](rng, shape), what[0])
            name, decoded = written(Path(folder), made)
            if decoded is None:
                print(f"{kind:44} {name}")
                continue
            qtype = ALL[name.split()[0]]
            theirs = gguf_decode(ggml_encode(made.x, qtype), qtype)
            print(f"{kind:44} {name:14} {figures(made, decoded)}        {figures(made, theirs)}")
        show_cost(Path(folder))


def show_cost(folder: Path) -> None:
    """Print the time that looking for grids takes if there are none."""
    rng = np.random.default_rng(1)
    tensors: list[ModelTensor] = []
    for number in range(200):
        x = rng.standard_normal((64, N_PER_ROW)).astype(np.float32)
        tensors.append(plain(folder / f"c{number}", x, "BF16").tensor)
    started = time.perf_counter()
    find_grids(tensors, all_sources=True)
    seconds = time.perf_counter() - started
    print(f"\nno grid in {len(tensors)} tensors: {1e6 * seconds / len(tensors):.0f} us a tensor")


if __name__ == "__main__":
    main()
