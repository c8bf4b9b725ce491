"""A small model, and plans of it whose types are open."""

from __future__ import annotations

from pathlib import Path

from handmade import KEYS, computed_tensor, recipe
from second_moments import input_of, write_importance, write_moments

import dynquant
from dynquant.arch.base import Model, ModelTensor
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan

DOWN, GATE, UP = (f"blk.0.ffn_{role}.weight" for role in ("down", "gate", "up"))


def tensors() -> tuple[ModelTensor, ...]:
    return (
        computed_tensor("token_embd.weight", 37, 256, seed=1),
        computed_tensor(DOWN, 150, 512, seed=2),
        computed_tensor(GATE, 80, 256, seed=3),
        computed_tensor(UP, 80, 256, seed=4),
    )


def planned(
    folder: Path | None, choose: str = "any", more: str = "", *, moments: bool = False
) -> Plan:
    """Return a plan with open types; folder: for an imatrix, and moments of ffn_down."""
    imatrix = given = None
    if folder:
        imatrix = dynquant.load_imatrix(write_importance(folder / "i.gguf", *tensors()))
    if folder and moments:
        path = folder / "m.moments.safetensors"
        given = dynquant.load_moments(write_moments(path, input_of(tensors()[1])))
    return make_plan(
        Model("llama", dict(KEYS), tensors(), {}),
        recipe("Q8_0", f"{more}\nrules: [{{name: '*', choose: {choose}}}]"),
        imatrix=imatrix,
        moments=given,
        decided={},
    )
