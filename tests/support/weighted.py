"""The small handmade model with importance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from handmade import DOWN, model, recipe
from imatrices import write_counted

from dynquant.arrays import F32
from dynquant.importance.experts import DEFAULT, Policy
from dynquant.importance.imatrix import read_imatrix
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan

EXPERTS = "blk.1.ffn_up_exps.weight"


def spread(*shape: int, seed: int = 0) -> F32:
    """Return log-normal numbers with the spread of real mean squares."""
    return np.exp(2 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def weighted_plan(
    folder: Path, counts: tuple[int, ...] = (1, 1, 1), policy: Policy = DEFAULT
) -> Plan:
    """Plan the small model at four bits, with importance for one matrix and for experts."""
    entries = {
        DOWN: (spread(1, 512), [1]),
        EXPERTS: (spread(3, 256, seed=1), counts),
    }
    imatrix = read_imatrix(write_counted(folder / "i.gguf", entries))
    return make_plan(model(), replace(recipe("Q4_0"), experts=policy), imatrix=imatrix)
