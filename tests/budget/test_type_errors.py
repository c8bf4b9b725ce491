"""Errors of types: against whole tensors decoded by the `gguf` package, and by brute force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from handmade import KEYS, computed_tensor, recipe
from open_types import DOWN, GATE, UP, planned, tensors
from second_moments import write_importance

import dynquant
from dynquant.arch.base import Model, ModelTensor
from dynquant.budget.errors import WEIGHTS, TensorErrors, measure_errors
from dynquant.budget.groups import groups_of
from dynquant.budget.sample import RUN, runs_of, usual_inputs
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError, PlanError
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants import ALL, decode


def errors_of(plan: Plan, *, threads: int = 1, weights: int = 1 << 19) -> dict[str, TensorErrors]:
    return measure_errors(plan, groups_of(plan, ()), threads=threads, weights=weights)


def weights_of(tensor: ModelTensor) -> np.ndarray:
    raw = np.empty(tensor.n_rows * tensor.n_per_row * 4, np.uint8)
    tensor.source.read(0, tensor.n_rows, raw)
    return raw.view(np.float32).reshape(-1, tensor.n_per_row)


def usual(plan: Plan, name: str) -> np.ndarray:
    """Return a tensor's importance, of which the largest hundredth counts as the one after it."""
    h = plan.importance[name].of(0)
    assert h is not None
    return np.minimum(h, np.sort(h)[-(len(h) // 100) - 1])


def converted(plan: Plan, kind: str, out: Path) -> dict[str, np.ndarray]:
    """Return the weights of a conversion to one type, decoded by the gguf package."""
    fixed = make_plan(
        Model("llama", dict(KEYS), tensors(), {}),
        recipe(kind),
        imatrix=plan.imatrix,
        moments=plan.moments,
    )
    convert_plan(fixed, out, force=True)
    return {
        t.name: dequantize(np.array(t.data), GGMLQuantizationType[kind])
        for t in GGUFReader(out).tensors
    }


@pytest.mark.parametrize("with_importance", [False, True])
def test_errors_are_those_of_a_conversion(tmp_path: Path, *, with_importance: bool) -> None:
    plan = planned(tmp_path if with_importance else None, "[Q8_0, Q4_K, Q2_K]")
    found = errors_of(plan)
    for kind in ("Q8_0", "Q4_K", "Q2_K"):
        decoded = converted(plan, kind, tmp_path / "out.gguf")
        for t in tensors():
            w = weights_of(t).astype(np.float64)
            h = usual(plan, t.name) if with_importance else np.ones(t.n_per_row)
            expected = (h * np.square(w - decoded[t.name])).sum() / (h * np.square(w)).sum()
            assert found[t.name].relative[kind] == pytest.approx(expected, rel=1e-5)


def test_feedback_lowers_errors_by_what_it_leaves_on_held_out_text(tmp_path: Path) -> None:
    plain = errors_of(planned(tmp_path, "[Q4_K]"))
    plan = planned(tmp_path, "[Q4_K]", moments=True)
    assert plan.moments is not None
    assert list(plan.feedback) == [DOWN]
    found = errors_of(plan)
    assert found[GATE] == plain[GATE]
    sums = plan.moments.arrays(DOWN)["held_out"][0].astype(np.float64)
    w = weights_of(tensors()[1])

    def lost(decoded: np.ndarray) -> float:
        return float(np.square((w - decoded) @ sums.T).sum())

    after = converted(plan, "Q4_K", tmp_path / "a.gguf")[DOWN]
    before = converted(replace(plan, moments=None), "Q4_K", tmp_path / "b.gguf")[DOWN]
    assert lost(after) < lost(before)
    ratio = found[DOWN].relative["Q4_K"] / plain[DOWN].relative["Q4_K"]
    assert ratio == pytest.approx(lost(after) / lost(before), rel=1e-4)


def test_channels_of_a_few_tokens_do_not_hide_the_others(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[IQ2_XXS]")
    h = plan.importance[DOWN].of(0)
    assert h is not None
    massive = h.copy()
    massive[[3, 77]] *= 1e6
    found = usual_inputs(massive)
    assert (np.delete(found, [3, 77]) <= h.max()).all()
    assert found.max() == np.sort(massive)[-len(h) // 100]
    assert (found == massive).mean() > 0.98


def test_errors_are_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    plan = planned(tmp_path, moments=True)
    assert errors_of(plan, threads=1) == errors_of(plan, threads=3)


def test_a_sample_is_near_all_rows(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[Q4_K, IQ2_XXS]")
    few, every = errors_of(plan, weights=1 << 14), errors_of(plan)
    assert few[DOWN].rows != every[DOWN].rows
    for name in ("Q4_K", "IQ2_XXS"):
        assert few[DOWN].relative[name] == pytest.approx(every[DOWN].relative[name], rel=0.1)


def test_runs_are_spread_over_all_matrices_and_leave_none() -> None:
    runs = runs_of(4 * 1000, 4, 4096, weights=1 << 19)
    assert len(runs) == (1 << 19) // (RUN * 4096)
    assert (runs[0].start, runs[-1].stop) == (0, 4000)
    assert {r.matrix for r in runs} == {0, 1, 2, 3}
    assert all(r.start // 1000 == (r.stop - 1) // 1000 == r.matrix for r in runs)


def test_a_small_tensor_is_read_whole() -> None:
    runs = runs_of(50, 2, 256, WEIGHTS)
    assert [(r.start, r.stop) for r in runs] == [(0, 16), (16, 25), (25, 41), (41, 50)]


def test_weights_that_are_not_finite_are_an_error_that_names_the_tensor() -> None:
    bad = computed_tensor("blk.0.attn_q.weight", 4, 256)
    values = weights_of(bad)
    values[2, 3] = np.nan

    class Source:
        shape, stored = values.shape, ALL["F32"]

        def read(self, start: int, stop: int, into: np.ndarray) -> None:
            into[:] = np.ascontiguousarray(values[start:stop]).view(np.uint8).ravel()

    plan = make_plan(
        Model("llama", dict(KEYS), (ModelTensor(bad.name, Source()),), {}),  # type: ignore[arg-type]
        recipe("Q8_0", "rules: [{name: '*', choose: [Q4_K]}]"),
        decided={},
    )
    with pytest.raises(ConvertError, match=r"'blk.0.attn_q.weight': a weight is not finite"):
        errors_of(plan)


@pytest.mark.parametrize("name", [t.name for t in ALL.values() if not t.is_float])
def test_zeros_decode_to_zeros(name: str) -> None:
    blocks = np.zeros((1, ALL[name].row_size(256)), np.uint8)
    assert not decode(blocks, name, 256).any()


def test_roles_that_share_a_type_are_one_group(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    groups = groups_of(plan, None)
    assert [g.names for g in groups] == [("token_embd.weight",), (DOWN,), (GATE, UP)]
    assert sum(g.n_bytes(ALL["Q8_0"]) for g in groups) == plan.data_bytes


def test_tensors_that_share_a_type_need_one_in_common(tmp_path: Path) -> None:
    rules = "{role: ffn_up, choose: [Q8_0]}, {name: '*', choose: [Q4_K]}"
    imatrix = dynquant.load_imatrix(write_importance(tmp_path / "i.gguf", *tensors()))
    plan = make_plan(
        Model("llama", dict(KEYS), tensors(), {}),
        recipe("Q8_0", f"rules: [{rules}]"),
        imatrix=imatrix,
        decided={},
    )
    with pytest.raises(PlanError, match="share a type have none in common") as e:
        groups_of(plan, [("ffn_gate", "ffn_up")])
    assert f"{GATE}: Q4_K; {UP}: Q8_0" in str(e.value)
