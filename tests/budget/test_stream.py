"""What layers add to the residual stream: against sums over all weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade import KEYS, computed_tensor, recipe
from second_moments import write_importance

import dynquant
from dynquant.arch.base import Model, ModelTensor
from dynquant.budget.stream import stream_of
from dynquant.importance.audit import audit
from dynquant.importance.equal import write_equal
from dynquant.keys import f32
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan

WIDE = 64


def tensors(*more: ModelTensor) -> tuple[ModelTensor, ...]:
    found = [computed_tensor("token_embd.weight", 90, WIDE, seed=1)]
    for layer in range(2):
        for i, (role, n_per_row) in enumerate(
            [("attn_q", WIDE), ("attn_output", 32), ("ffn_up", WIDE), ("ffn_down", 160)]
        ):
            name = f"blk.{layer}.{role}.weight"
            found.append(computed_tensor(name, WIDE, n_per_row, seed=10 * layer + i + 2))
    return (*found, *more)


def planned(folder: Path, *more: ModelTensor, architecture: str = "llama", **keys: float) -> Plan:
    own = {f"{architecture}.{name}": f32(value) for name, value in keys.items()}
    model = Model(architecture, dict(KEYS) | own, tensors(*more), {})
    matrices = [t for t in tensors() if len(t.shape) > 1]
    imatrix = dynquant.load_imatrix(write_importance(folder / "i.gguf", *matrices))
    return make_plan(model, recipe("Q8_0"), imatrix=imatrix)


def mean_square(plan: Plan, name: str) -> float:
    """Return the mean square of a matrix's outputs, from all of its weights."""
    t = next(t for t in tensors() if t.name == name)
    raw = np.empty(t.n_rows * t.n_per_row * 4, np.uint8)
    t.source.read(0, t.n_rows, raw)
    w = raw.view(np.float32).reshape(-1, t.n_per_row).astype(np.float64)
    h = plan.importance[name].of(0)
    assert h is not None
    h = np.minimum(h, np.sort(h)[-(len(h) // 100) - 1])
    return float((h * w**2).sum(axis=1).mean())


def embedding() -> float:
    t = tensors()[0]
    raw = np.empty(t.n_rows * t.n_per_row * 4, np.uint8)
    t.source.read(0, t.n_rows, raw)
    return float(np.square(raw.view(np.float32).astype(np.float64)).mean())


def test_shares_are_of_the_stream_after_each_branch(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    found = stream_of(plan)
    whole = embedding()
    for layer in range(2):
        for branch, role in (("attn", "attn_output"), ("ffn", "ffn_down")):
            adds = mean_square(plan, f"blk.{layer}.{role}.weight")
            whole += adds
            assert found.shares[layer, branch] == pytest.approx(adds / whole, rel=1e-6)
    assert found.share("blk.1.ffn_up.weight") == found.shares[1, "ffn"]
    assert found.share("blk.1.attn_q.weight") == found.shares[1, "attn"]
    assert found.share("token_embd.weight") is None


def test_logits_have_the_mean_square_of_the_outputs_of_the_last_matrix(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert stream_of(plan).logits == pytest.approx(mean_square(plan, "token_embd.weight"), rel=1e-6)


def test_scales_of_the_architecture_count(tmp_path: Path) -> None:
    plain = stream_of(planned(tmp_path)).shares[0, "attn"]
    scaled = stream_of(planned(tmp_path, embedding_scale=3.0)).shares[0, "attn"]
    ratio = plain / (1 - plain)
    assert scaled == pytest.approx(ratio / (ratio + 9), rel=1e-6)
    both = stream_of(planned(tmp_path, embedding_scale=3.0, residual_scale=3.0))
    assert both.shares[0, "attn"] == pytest.approx(plain, rel=1e-6)


def test_a_norm_after_a_branch_sets_what_it_adds(tmp_path: Path) -> None:
    norms = [
        computed_tensor(f"blk.0.{role}.weight", WIDE, seed=7 + i)
        for i, role in enumerate(("post_attention_norm", "post_ffw_norm"))
    ]
    plan = planned(tmp_path, *norms)
    gains = np.empty(WIDE * 4, np.uint8)
    norms[0].source.read(0, 1, gains)
    adds = float(np.square(gains.view(np.float32).astype(np.float64)).mean())
    assert stream_of(plan).shares[0, "attn"] == pytest.approx(adds / (adds + embedding()), rel=1e-6)
    # One of them alone is the norm before the feed-forward network, in Qwen and gpt-oss.
    other = planned(tmp_path, norms[0])
    assert stream_of(other).shares == stream_of(planned(tmp_path)).shares


def test_nothing_is_known_without_text(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert stream_of(replace(plan, importance={})).shares == {}
    write_equal(Model("llama", dict(KEYS), tensors(), {}), tmp_path / "equal.gguf")
    equal = audit(dynquant.load_imatrix(tmp_path / "equal.gguf"), tensors())[0]
    found = stream_of(replace(plan, importance=equal))
    assert (found.shares, found.logits) == ({}, None)
