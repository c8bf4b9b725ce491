"""The adapters of tests/references/adapters, and copies of them with changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from checkpoints import config_of
from checkpoints import tensors_of as random_tensors
from packers import Format, Stored, write_stored
from places import REFERENCES
from safetensors.numpy import load_file, save_file

import dynquant

ADAPTERS = REFERENCES / "adapters"
FAMILIES = tuple(sorted(p.name for p in ADAPTERS.iterdir() if p.is_dir()))

Tensors = dict[str, np.ndarray]


def changed(
    family: str,
    folder: Path,
    change: Callable[[Tensors], None] = lambda _: None,
    **settings: Any,
) -> Path:
    """Copy an adapter into a folder, with other settings and tensors; return the folder."""
    shutil.copytree(ADAPTERS / family, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings))
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merged(family: str, out: Path, *adapters: Path, **options: Any) -> Path:
    """Convert a reference with adapters merged into it."""
    given = {"recipe": "f32", "threads": 1, **options}
    dynquant.convert(REFERENCES / family, out, merge_adapter=adapters, **given)
    return out


def alone(family: str, out: Path, adapter: Path | None = None, **options: Any) -> Path:
    """Convert an adapter of a reference to a GGUF."""
    given = {"recipe": "f32", "threads": 1, **options}
    folder = ADAPTERS / family if adapter is None else adapter
    dynquant.convert(folder, out, base=REFERENCES / family, **given)
    return out


def tensors_of(path: Path) -> Tensors:
    """Return the tensors of a GGUF of floats, as the gguf package reads them."""
    return {
        t.name: np.asarray(t.data).reshape(*reversed(t.shape.tolist()))
        for t in gguf.GGUFReader(path).tensors
    }


def packed_llama(folder: Path, form: Format) -> tuple[Path, Tensors]:
    """Write a packed checkpoint with a tokenizer; return it, and the values of its matrices."""
    config = config_of(
        "LlamaForCausalLM",
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        head_dim=32,
    )
    rng = np.random.default_rng(17)
    stored: Stored = {}
    values: Tensors = {}
    for name, x in random_tensors(config).items():
        if name.endswith("proj.weight"):
            codes, values[name] = form.pack(name, x.shape, rng)
            stored |= codes
        else:
            stored[name] = ("F32", x)
    write_stored(folder, config | {"quantization_config": form.settings}, stored)
    for file in (REFERENCES / "llama-3.1").glob("*.json"):
        if file.name != "config.json":
            shutil.copy(file, folder)
    return folder, values


def tied_adapter(folder: Path, family: str, module: str, token: int | None = None) -> Path:
    """Write an adapter that adds 2 to the numbers of an embedding or output matrix.

    token: adds 0.2 to the numbers of this row only
    """
    model = dynquant.load_model(REFERENCES / family)
    n_tokens, width = {t.name: t.shape for t in model.tensors}["token_embd.weight"]
    rows = np.ones(n_tokens, np.float32)
    if token is not None:
        rows[:] = 0.1 * (np.arange(n_tokens) == token)
    ones = np.ones((1, width), np.float32)
    prefix = f"base_model.model.{module}.lora_"

    def change(tensors: Tensors) -> None:
        tensors.clear()
        if module == "lm_head":
            tensors |= {f"{prefix}A.weight": ones, f"{prefix}B.weight": rows[:, None].copy()}
        else:
            factors = (rows[None].copy(), ones.T.copy())
            tensors |= {f"{prefix}embedding_A": factors[0], f"{prefix}embedding_B": factors[1]}

    return changed("gemma", folder, change, r=1, lora_alpha=2)
