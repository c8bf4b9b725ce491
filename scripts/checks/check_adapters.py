"""Adapters of every module of the reference checkpoints: applied by llama.cpp beside merged.

    python scripts/checks/check_adapters.py [FAMILY ...]

For each family, a random adapter of all matrices that `convert --base` accepts is written as a GGUF
and merged into the model. llama.cpp's log-probabilities must be the same; if its graph ignored one
factor, or rows were in another order, they would differ. Prints the largest difference, the effect
of the adapter, and the kinds of modules that are refused.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import dynquant
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import DynquantError

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = ROOT / "tests" / "references"
sys.path.insert(0, str(ROOT / "tests" / "support"))

import llamacpp  # noqa: E402
from agreement import FAMILIES, load_reference  # noqa: E402

RANK = 3
Shapes = Mapping[str, tuple[int, ...]]


def write_adapter(folder: Path, shapes: Shapes, seed: int, *, flipped: bool) -> Path:
    """Write a random adapter of weights; flipped: they are stored as [inputs, outputs]."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        n_out, n_in = reversed(shape) if flipped else shape
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        for factor, size in (("A", (RANK, n_in)), ("B", (n_out, RANK))):
            noise = rng.standard_normal(size, np.float32)
            tensors[f"{prefix}{factor}.weight"] = noise * np.float32(0.2)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "fan_in_fan_out": flipped}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def accepted(base: Path, scratch: Path) -> tuple[dict[str, tuple[int, ...]], bool, dict[str, str]]:
    """Return the weights that have adapters, whether they are flipped, and what is refused."""
    stored = {n: t.shape for n, t in open_checkpoint(base).tensors.items()}
    kinds: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in stored.items():
        if len(shape) == 2 and name.endswith(".weight"):
            kinds.setdefault(re.sub(r"\.\d+\.", ".N.", name), {})[name] = shape
    found: dict[str, tuple[int, ...]] = {}
    refused: dict[str, str] = {}
    flipped = "GPT2LMHeadModel" in (base / "config.json").read_text("utf-8")
    for kind, shapes in kinds.items():
        if "embed" in kind or "wte" in kind or "wpe" in kind:
            continue  # these have other factors
        try:
            adapter = write_adapter(scratch, shapes, 0, flipped=flipped)
            dynquant.load_model(adapter, base=base)
            found |= shapes
        except DynquantError as e:
            refused[kind] = e.messages[0].rpartition("safetensors: ")[2]
    return found, flipped, refused


def check(family: str, folder: Path) -> None:
    """Print what llama.cpp makes of an adapter of a family."""
    reference, base = load_reference(family), REFERENCES / family
    if reference.embeds:
        return
    shapes, flipped, refused = accepted(base, folder / "scratch")
    if not shapes:
        print(f"{family}: nothing is accepted")
        return
    seed = zlib.crc32(family.encode())
    adapter = write_adapter(folder / "adapter", shapes, seed, flipped=flipped)
    files = {name: folder / f"{name}.gguf" for name in ("base", "lora", "merged")}
    dynquant.convert(base, files["base"], recipe="f32", force=True)
    dynquant.convert(adapter, files["lora"], base=base, recipe="f32", force=True)
    dynquant.convert(base, files["merged"], recipe="f32", force=True, merge_adapter=[adapter])
    prompts = reference.prompts[:3]
    merged = llamacpp.log_probabilities(files["merged"], prompts)
    applied = llamacpp.log_probabilities(files["base"], prompts, adapter=files["lora"])
    effect = np.abs(merged - reference.log_probabilities[:3]).max()
    difference = np.abs(merged - applied).max()
    mark = "" if difference < 5e-3 else "  DIFFERS"
    print(f"{family}: {difference:.2g} of {effect:.2g}, {len(shapes)} matrices{mark}", flush=True)
    for kind, why in refused.items():
        print(f"    refused: {kind}: {why[:140]}", flush=True)


def main() -> None:
    """Check the families named, or all."""
    with tempfile.TemporaryDirectory() as folder:
        for family in sys.argv[1:] or FAMILIES:
            try:
                check(family, Path(folder))
            except DynquantError as e:
                print(f"{family}: {e}", flush=True)


if __name__ == "__main__":
    main()
