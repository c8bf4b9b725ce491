"""Checkpoints with a prediction layer (multi-token prediction)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from agreement import load_reference
from packers import stored_in, write_stored
from safetensors.numpy import save_file

from dynquant.arch.load import load_model
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.recipe.loader import parse_recipe

N_LAYERS, HIDDEN = 3, 32


def bf16(x: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 numbers: BF16, rounded towards zero."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def with_prediction(
    folder: Path, *, family: str = "deepseek-v3", without: str = "", head: bool = True
) -> Path:
    """Copy the reference and add a layer as a second shard; head: copy embedding and output too."""
    shutil.copytree(load_reference(family).folder, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    stored = read_bf16(folder / "model.safetensors")
    rng = np.random.default_rng(3)
    n_layers: int = config["num_hidden_layers"]
    at, last = f"model.layers.{n_layers}.", f"model.layers.{n_layers - 1}."
    more = {
        name.replace(last, at): x[::-1].copy()
        for name, x in stored.items()
        if name.startswith(last)
    }
    more[at + "eh_proj.weight"] = bf16(rng.standard_normal((HIDDEN, 2 * HIDDEN)))
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        more[f"{at}{norm}.weight"] = bf16(rng.standard_normal(HIDDEN))
    if head:
        more[at + "embed_tokens.weight"] = stored["model.embed_tokens.weight"]
        more[at + "shared_head.head.weight"] = stored["lm_head.weight"]
    more.pop(without, None)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    write_bf16(folder / "model-00002-of-00002.safetensors", more)
    index = dict.fromkeys(stored, "model-00001-of-00002.safetensors")
    index |= dict.fromkeys(more, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def with_copied_layer(name: str, folder: Path, last: str, more: dict[str, str]) -> Path:
    """Copy a reference and add its last layer once more, as a layer for multi-token prediction.

    last: the beginning of the names of the last layer, `model.layers.1.`
    more: names of the further tensors in the new layer, and the stored tensors that they copy
    """
    source = load_reference(name).folder
    stored = stored_in(source)
    number = int(last.rstrip(".").rpartition(".")[2])
    ahead = last.replace(f".{number}.", f".{number + 1}.")
    copies = {n.replace(last, ahead): x for n, x in stored.items() if n.startswith(last)}
    copies |= {ahead + new: stored[old] for new, old in more.items()}
    dtype, head = stored["lm_head.weight"]
    copies[f"{ahead}eh_proj.weight"] = (dtype, np.tile(head[: head.shape[1]], (1, 2)))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text("utf-8"))
    config.get("text_config", config)["num_nextn_predict_layers"] = 1
    write_stored(folder, config, stored | copies)
    return folder


def read_bf16(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file as 16-bit numbers, because numpy has no BF16."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    return {
        name: np.frombuffer(content[8 + n :][slice(*t["data_offsets"])], "<u2").reshape(t["shape"])
        for name, t in header.items()
        if name != "__metadata__"
    }


def write_bf16(path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, path)
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    # "BF16" is one letter longer than "U16"; padding at the end of the header is adjusted.
    header = content[8 : 8 + n].replace(b'"U16"', b'"BF16"').rstrip()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + n :])


def plan_of(folder: Path, text: str) -> Plan:
    return make_plan(load_model(folder), parse_recipe(text, "r.yaml", "r"))
