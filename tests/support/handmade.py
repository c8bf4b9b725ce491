"""Handmade models and recipes, to test plan and convert without a checkpoint."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from dynquant.arch.base import Model, ModelTensor
from dynquant.keys import f32, string, strings, u32
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants import ALL
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.rules import Recipe
from dynquant.report.plan_tables import plan_tables
from dynquant.tensors import Computed, ShardFile, Stored

N_PER_ROW = 256
DOWN = "blk.0.ffn_down.weight"

KEYS = {
    "general.architecture": string("llama"),
    "general.name": string("Handmade"),
    "llama.block_count": u32(2),
    "llama.rope.freq_base": f32(10000.0),
    "tokenizer.ggml.model": string("gpt2"),
    "tokenizer.ggml.tokens": strings(["a", "", "Ġb"]),
}


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bf16(x: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 numbers: BF16, rounded towards zero."""
    return (x.view(np.uint32) >> 16).astype("<u2")


def stored_tensor(path: Path, name: str, x: np.ndarray) -> ModelTensor:
    """Write a tensor as BF16 into a separate file."""
    path.write_bytes(bf16(x).tobytes())
    return ModelTensor(name, Stored(ShardFile(path), 0, x.shape, ALL["BF16"]))


def computed_tensor(name: str, *shape: int, seed: int = 0) -> ModelTensor:
    return ModelTensor(name, Computed(weights(*shape, seed=seed)))


def small_tensors() -> tuple[ModelTensor, ...]:
    """Return tensors with row counts that chunks do not divide, and a norm that needs padding."""
    shapes = {
        "token_embd.weight": (37, N_PER_ROW),
        "blk.0.attn_norm.weight": (N_PER_ROW + 1,),
        DOWN: (67, 2 * N_PER_ROW),
        "blk.1.ffn_down.weight": (67, 2 * N_PER_ROW),
        "blk.1.ffn_up_exps.weight": (3, 41, N_PER_ROW),
        "output_norm.weight": (N_PER_ROW + 1,),
    }
    return tuple(computed_tensor(n, *s, seed=i) for i, (n, s) in enumerate(shapes.items()))


def model(*tensors: ModelTensor) -> Model:
    return Model("llama", dict(KEYS), tensors or small_tensors(), {})


def recipe(default: str = "Q8_0", more: str = "") -> Recipe:
    return parse_recipe(f"default: {default}\n{more}", "recipes/hand.yaml", "hand")


def small_plan(default: str = "Q8_0", more: str = "") -> Plan:
    return make_plan(model(), recipe(default, more))


def names(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return sorted(p.name for p in folder.iterdir())


def shown(plan: Plan) -> str:
    """Return the plan as printed."""
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(plan_tables(plan, 0))
    return drawn.getvalue()
