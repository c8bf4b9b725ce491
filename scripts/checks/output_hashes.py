#!/usr/bin/env python3
"""Hashes of what every shipped recipe makes of tiny-books and four reference families.

    git stash; python scripts/checks/output_hashes.py > before.txt; git stash pop
    python scripts/checks/output_hashes.py > after.txt
    diff before.txt after.txt

A line holds model, recipe, the sha256 of all tensors (name, type, shape and bytes, in the order of
the file) and the sha256 of all keys. Two keys are not hashed: the revision of the encoders, which
exists to change when the bytes do, and the hash of the recipe's text, which its comments change.
Recipes that refuse a model print the first problem instead.
Importances are made from a seed, log-normal, a value for each column of each matrix."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

import dynquant
from dynquant.checkpoint.gguf import read_gguf
from dynquant.keys import packed

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "tiny-books": ROOT / "tests" / "data" / "tiny-books",
    **{
        name: ROOT / "tests" / "references" / name
        for name in ("deepseek-v3", "gemma3", "gpt-oss", "qwen3next")
    },
}
UNHASHED = ("dynquant.encoder_revision", "dynquant.recipe_sha256")


def recipes() -> list[str]:
    """Return the names of all shipped recipes."""
    folder = ROOT / "recipes"
    return sorted(p.stem for p in (*folder.glob("*.yaml"), *folder.glob("llama.cpp/*.yaml")))


def write_importance(model: gguf.GGUFReader, path: Path) -> None:
    """Write an imatrix that covers every matrix of a GGUF, the same for the same GGUF."""
    chance = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["seeded"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in model.tensors:
        shape = [int(n) for n in tensor.shape]  # the fastest dimension first
        if len(shape) < 2 or not tensor.name.endswith(".weight"):
            continue
        rows = shape[2] if len(shape) > 2 else 1
        sums = chance.lognormal(0, 1, (rows, shape[0])).astype(np.float32)
        writer.add_tensor(f"{tensor.name}.in_sum2", sums)
        writer.add_tensor(f"{tensor.name}.counts", np.ones((rows, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def hashes(path: Path) -> tuple[str, str]:
    """Return the hash of a file's tensors and that of its keys."""
    header = read_gguf(path)
    content = path.read_bytes()
    tensors, keys = hashlib.sha256(), hashlib.sha256()
    for t in header.tensors:
        start = header.data_offset + t.offset
        tensors.update(f"{t.name} {t.type_name} {list(t.shape)}\n".encode())
        tensors.update(content[start : start + t.n_bytes])
    for name, value in header.keys.items():
        if name not in UNHASHED:
            keys.update(name.encode() + packed(value))
    return tensors.hexdigest(), keys.hexdigest()


def main() -> None:
    """Print a line for each model and recipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in args.models.split(","):
            whole, importance = out / "whole.gguf", out / "importance.gguf"
            dynquant.convert(MODELS[name], whole, recipe="f32", force=True)
            write_importance(gguf.GGUFReader(whole), importance)
            for recipe in recipes():
                made = out / "made.gguf"
                try:
                    dynquant.convert(
                        MODELS[name], made, recipe=recipe, imatrix=importance, force=True
                    )
                except dynquant.DynquantError as e:
                    first = hashlib.sha256(str(e).encode()).hexdigest()[:8]
                    print(f"{name:12} {recipe:22} refused", file=sys.stdout, flush=True)
                    print(f"{name} {recipe} {first}: {e}", file=sys.stderr)
                    continue
                tensors, keys = hashes(made)
                print(f"{name:12} {recipe:22} {tensors} {keys}", flush=True)


if __name__ == "__main__":
    main()
