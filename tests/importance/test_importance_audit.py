"""An imatrix must fit the model by names and sizes; tensors without importance are reported.

Experts have only their own figures here; test_experts.py is about those with few tokens.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_holes
from handmade import computed_tensor, recipe
from imatrices import Counted, write_counted, write_legacy
from places import ROOT, shared

from dynquant.arch.base import ModelTensor
from dynquant.arch.load import load_model
from dynquant.arrays import F32
from dynquant.errors import ImportanceError
from dynquant.importance.audit import Importance, audit, gaps
from dynquant.importance.experts import ALONE
from dynquant.importance.imatrix import read_imatrix
from dynquant.plan.make import make_plan

UP, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"
MODEL = (
    computed_tensor("token_embd.weight", 5, 8),
    computed_tensor("blk.0.attn_norm.weight", 8),
    computed_tensor(UP, 6, 8),
    computed_tensor(EXPERTS, 3, 6, 8),
    computed_tensor("output.weight", 5, 8),
)


def positive(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).chisquare(1, shape).astype(np.float32)


def audited(
    path: Path, *tensors: ModelTensor
) -> tuple[dict[str, Importance], tuple[str, ...], tuple[str, ...]]:
    """Return importance, warnings, and the messages about tensors without importance."""
    imatrix = read_imatrix(path)
    importance, warnings = audit(imatrix, tensors or MODEL, ALONE)
    wanted = [t.name for t in tensors or MODEL if len(t.shape) > 1]
    return importance, warnings, tuple(gaps(imatrix, wanted, importance))


def counted(path: Path, entries: dict[str, Counted]) -> Path:
    return write_counted(path / "x.gguf", entries)


def refused(path: Path, *tensors: ModelTensor) -> tuple[str, ...]:
    with pytest.raises(ImportanceError) as e:
        audit(read_imatrix(path), tensors or MODEL)
    return tuple(m.removeprefix(f"{path}: ") for m in e.value.messages)


def test_each_expert_has_its_own_row_of_a_gguf(tmp_path: Path) -> None:
    sums = positive(3, 8)
    found, warnings, _ = audited(counted(tmp_path, {EXPERTS: (sums, [2, 5, 7])}))
    assert warnings == ()
    for expert, count in enumerate((2, 5, 7)):
        row = found[EXPERTS].of(expert)
        assert row is not None
        assert row.dtype == np.float32
        assert np.array_equal(row, sums[expert] / np.float32(count))


def test_each_expert_has_its_own_part_of_an_older_files_entry(tmp_path: Path) -> None:
    means = positive(3, 8)
    found, _, _ = audited(write_legacy(tmp_path / "x.dat", {EXPERTS: means}, n_calls=4))
    for expert in range(3):
        assert np.array_equal(found[EXPERTS].of(expert), means[expert])


def test_an_entry_without_data_gives_way_to_one_with_the_same_inputs(tmp_path: Path) -> None:
    gate, up = computed_tensor("blk.0.ffn_gate.weight", 6, 8), computed_tensor(UP, 6, 8)
    sums = positive(1, 8)
    entries = {gate.name: (np.zeros((1, 8), np.float32), [0]), UP: (sums, [4])}
    found, _ = audit(read_imatrix(counted(tmp_path, entries)), [gate, up])
    assert np.array_equal(found[gate.name].of(0), sums[0] / np.float32(4))
    assert (found[gate.name].role, found[UP].role) == ("ffn_up", "")


def test_no_data_for_all_tensors_with_the_same_inputs_is_no_importance(tmp_path: Path) -> None:
    gate, up = computed_tensor("blk.0.ffn_gate.weight", 6, 8), computed_tensor(UP, 6, 8)
    none = (np.zeros((1, 8), np.float32), [0])
    found, _ = audit(read_imatrix(counted(tmp_path, {gate.name: none, UP: none})), [gate, up])
    assert found == {}


def test_many_matrices_under_one_count_have_their_own_parts(tmp_path: Path) -> None:
    # What llama-imatrix writes for the heads of attn_k_b: one long row, one count.
    sums = positive(1, 24)
    found, _, _ = audited(counted(tmp_path, {EXPERTS: (sums, [3])}))
    assert np.array_equal(found[EXPERTS].of(2), sums[0, 16:] / np.float32(3))


def test_all_matrices_may_share_one_row(tmp_path: Path) -> None:
    sums = positive(1, 8)
    found, _, messages = audited(counted(tmp_path, {UP: (sums, [1]), EXPERTS: (sums, [3])}))
    for expert in range(3):
        assert np.array_equal(found[EXPERTS].of(expert), sums[0] / np.float32(3))
    assert (found[EXPERTS].coverage, messages) == ("yes", ())


def test_an_expert_without_a_count_or_with_only_zeros_has_no_importance(tmp_path: Path) -> None:
    sums = positive(3, 8)
    sums[2] = 0
    found, _, messages = audited(
        counted(tmp_path, {UP: (sums[:1], [1]), EXPERTS: (sums, [4, 0, 4])})
    )
    assert [found[EXPERTS].of(e) is None for e in range(3)] == [False, True, True]
    assert found[EXPERTS].coverage == "partial: 1 of 3 experts"
    (message,) = messages
    assert f"no importance for 2 of 3 experts in {EXPERTS}" in message


def test_experts_without_data_in_many_layers_are_reported_in_one_line(tmp_path: Path) -> None:
    names = [f"blk.{i}.ffn_up_exps.weight" for i in range(30)]
    counts = {n: [1, 0, 1] for n in names} | {names[7]: [0, 0, 1]}
    path = counted(tmp_path, {n: (positive(3, 8), counts[n]) for n in names})
    (message,) = audited(path, *(computed_tensor(n, 3, 6, 8) for n in names))[2]
    assert "31 of 90 experts in blk.{0-29}.ffn_up_exps.weight" in message
    assert f"2 of them in {names[7]}" in message


@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 1, 1]])
def test_a_tensor_without_data_has_no_importance(tmp_path: Path, counts: list[int]) -> None:
    sums = positive(3, 8) if counts == [0, 0, 0] else np.zeros((3, 8), np.float32)
    known = {UP: (positive(1, 8), [1]), EXPERTS: (sums, counts)}
    found, _, messages = audited(counted(tmp_path, known))
    assert list(found) == [UP]
    (message,) = messages
    assert f"no importance for {EXPERTS};" in message


def test_zero_channels_among_others_stay_zero(tmp_path: Path) -> None:
    found, _, _ = audited(write_legacy(tmp_path / "x.dat", {UP: np.eye(8, dtype=np.float32)[3]}))
    assert np.array_equal(found[UP].of(0), np.eye(8)[3])


def test_missing_tensors_are_reported_except_embedding_and_output(
    tmp_path: Path,
) -> None:
    names = [f"blk.{i}.ffn_up.weight" for i in range(40)]
    tensors = [*(computed_tensor(n, 6, 8) for n in names), *MODEL[3:]]
    (message,) = audited(write_legacy(tmp_path / "x.dat", {UP: positive(8)}), *tensors)[2]
    assert f"no importance for blk.{{1-39}}.ffn_up.weight, {EXPERTS};" in message


def test_entries_that_are_not_in_the_model_give_a_warning(tmp_path: Path) -> None:
    extra = {f"blk.{i}.ffn_up.weight": positive(8) for i in range(4)}
    found, warnings, _ = audited(write_legacy(tmp_path / "x.dat", extra))
    assert list(found) == [UP]
    assert warnings == (
        f"{tmp_path / 'x.dat'}: ignored, not in the model: blk.{{1-3}}.ffn_up.weight",
    )


def test_a_file_without_a_name_of_the_model_is_refused(tmp_path: Path) -> None:
    other = {f"enc.blk.{i}.{role}.weight": positive(8) for i in range(9) for role in "abcd"}
    (message,) = refused(write_legacy(tmp_path / "x.dat", other))
    assert message == (
        "is the imatrix of another model: this model has none of its tensors"
        " (enc.blk.{0-8}.a.weight, enc.blk.{0-8}.b.weight, enc.blk.{0-8}.c.weight, …)"
    )


def test_all_wrong_sizes_are_reported_together_with_their_names(tmp_path: Path) -> None:
    names = [f"blk.{i}.ffn_up.weight" for i in range(30)]
    tensors = [computed_tensor(n, 6, 8) for n in names] + [computed_tensor(EXPERTS, 3, 6, 8)]
    means = {n: positive(16) for n in names[1:]} | {UP: positive(8), EXPERTS: positive(2, 8)}
    assert refused(write_legacy(tmp_path / "x.dat", means), *tensors) == (
        "is the imatrix of another model: 16 values for the 8 input channels of"
        " blk.{1-29}.ffn_up.weight",
        f"is the imatrix of another model: 16 values for the 3 times 8 input channels of {EXPERTS}",
    )


@pytest.mark.parametrize("rows", [2, 4])
def test_rows_for_another_number_of_experts_are_refused(tmp_path: Path, rows: int) -> None:
    (message,) = refused(counted(tmp_path, {EXPERTS: (positive(rows, 8), [1] * rows)}))
    assert f"{rows} times 8 values for the 3 times 8 input channels of {EXPERTS}" in message


def test_the_right_number_of_values_in_other_rows_is_refused(tmp_path: Path) -> None:
    (message,) = refused(counted(tmp_path, {UP: (positive(2, 4), [1, 1])}))
    assert f"2 times 4 values for the 8 input channels of {UP}" in message


def test_an_embedding_of_another_size_is_ignored_with_a_warning(tmp_path: Path) -> None:
    means = {UP: positive(8), "token_embd.weight": positive(5)}
    found, warnings, _ = audited(write_legacy(tmp_path / "x.dat", means))
    assert list(found) == [UP]
    (message,) = warnings
    assert message.endswith("ignored: 5 values for the 8 input channels of token_embd.weight")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_file_that_changes_during_a_run_is_an_error(tmp_path: Path, bad: float) -> None:
    path = write_legacy(tmp_path / "x.dat", {UP: positive(8)})
    found, _, _ = audited(path)
    with path.open("r+b") as file:
        file.seek(4 + 4 + len(UP) + 8)
        file.write(np.float32(bad).tobytes())
    with pytest.raises(ImportanceError, match="changed since it was read"):
        found[UP].of(0)


@pytest.mark.slow
@pytest.mark.shared
def test_the_imatrix_of_tinyllama_covers_all_matrices_of_a_tinyllama(
    tmp_path: Path,
) -> None:
    path = shared("imatrix/tinyllama-1.1b.imatrix.dat")
    script = runpy.run_path(str(ROOT / "scripts" / "models" / "make_synthetic_llama.py"))
    shape = script["Shape"](layers=22, hidden=2048, ffn=5632, heads=32, kv_heads=4, vocab=32000)
    script["write_texts"](tmp_path, shape)
    config = json.loads((tmp_path / "config.json").read_text())
    write_holes(tmp_path, config, dict(script["tensors"](shape)))
    plan = make_plan(load_model(tmp_path), recipe("Q4_K"), imatrix=read_imatrix(path))
    assert plan.warnings == ()
    assert plan.unweighted == ("token_embd.weight", "output.weight")
    assert sum(t.importance == "yes" for t in plan.tensors) == 22 * 7


# ---- other names for the same inputs -------------------------------------------------------------

SAME = (
    (("ffn_gate", "ffn_up"), "ffn_gate_up", (6, 8)),
    (("ffn_gate_exps", "ffn_up_exps"), "ffn_gate_up_exps", (3, 6, 8)),
    (("attn_q", "attn_k", "attn_v"), "attn_qkv", (6, 8)),
)


@pytest.mark.parametrize(("apart", "fused", "shape"), SAME)
def test_separate_tensors_have_the_importance_of_the_fused_one(
    apart: tuple[str, ...], fused: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    names = [f"blk.1.{role}.weight" for role in apart]
    n = shape[0] if len(shape) > 2 else 1
    sums = positive(n, 8)
    path = counted(tmp_path, {f"blk.1.{fused}.weight": (sums, [2] * n)})
    found, warnings, unweighted = audited(path, *(computed_tensor(name, *shape) for name in names))
    assert warnings == unweighted == ()
    assert {name: i.coverage for name, i in found.items()} == dict.fromkeys(
        names, f"yes, of {fused}"
    )
    for importance in found.values():
        for matrix in range(n):
            np.testing.assert_array_equal(importance.of(matrix), sums[matrix] / 2)


@pytest.mark.parametrize(("apart", "fused", "shape"), SAME)
def test_a_fused_tensor_has_the_importance_of_a_separate_one(
    apart: tuple[str, ...], fused: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    n = shape[0] if len(shape) > 2 else 1
    path = counted(tmp_path, {f"blk.1.{r}.weight": (positive(n, 8), [2] * n) for r in apart[:2]})
    found, warnings, _ = audited(path, computed_tensor(f"blk.1.{fused}.weight", *shape))
    (importance,) = found.values()
    used = importance.entry.name
    (unused,) = {f"blk.1.{role}.weight" for role in apart[:2]} - {used}
    assert importance.role in apart
    assert warnings == (f"{path}: ignored, not in the model: {unused}",)


def test_a_gate_without_an_entry_has_the_importance_of_up(tmp_path: Path) -> None:
    gate, up = "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"
    path = counted(tmp_path, {up: (positive(1, 8), [2])})
    found, *_ = audited(path, computed_tensor(gate, 6, 8), computed_tensor(up, 6, 8))
    assert {name: i.coverage for name, i in found.items()} == {gate: "yes, of ffn_up", up: "yes"}


def test_experts_without_data_stay_without_in_the_other_tensor(tmp_path: Path) -> None:
    gate = "blk.0.ffn_gate_exps.weight"
    sums = (positive(3, 8), [2, 0, 2])
    path = counted(tmp_path, {"blk.0.ffn_gate_up_exps.weight": sums})
    found, *_ = audited(path, computed_tensor(gate, 3, 6, 8))
    assert found[gate].coverage == "partial: 2 of 3 experts, of ffn_gate_up_exps"


@pytest.mark.parametrize(
    ("wanted", "shape", "other"),
    [
        ("blk.0.ffn_gate.weight", (6, 4), "blk.0.ffn_up.weight"),  # other sizes
        ("blk.0.ffn_gate_exps.weight", (2, 6, 8), "blk.0.ffn_up_exps.weight"),
        ("blk.0.ffn_gate.weight", (6, 8), "blk.1.ffn_up.weight"),  # another layer
        ("blk.0.ffn_down.weight", (6, 8), "blk.0.ffn_up.weight"),  # other inputs
        ("blk.0.ffn_gate_exps.weight", (1, 6, 8), "blk.0.ffn_up.weight"),
        ("blk.0.attn_output.weight", (6, 8), "blk.0.attn_qkv.weight"),
        ("dec.blk.0.cross_attn_q.weight", (6, 8), "dec.blk.0.attn_q.weight"),
        ("dec.blk.0.attn_q.weight", (6, 8), "enc.blk.0.attn_q.weight"),
    ],
)
def test_other_tensors_have_no_importance_of_it(
    wanted: str, shape: tuple[int, ...], other: str, tmp_path: Path
) -> None:
    entries: dict[str, Counted] = {
        name: (positive(1, 8), [2]) for name in (other, "blk.0.attn_gate.weight")
    }
    if "exps" in other:
        entries[other] = (positive(3, 8), [2, 2, 2])
    tensors = (computed_tensor(wanted, *shape), computed_tensor("blk.0.attn_gate.weight", 6, 8))
    found, *_ = audited(counted(tmp_path, entries), *tensors)
    assert wanted not in found


def test_an_entry_for_the_tensor_comes_first(tmp_path: Path) -> None:
    gate = "blk.0.ffn_gate.weight"
    own = positive(1, 8, seed=1)
    entries = {gate: (own, [2]), "blk.0.ffn_gate_up.weight": (positive(1, 8, seed=2), [2])}
    found, *_ = audited(counted(tmp_path, entries), computed_tensor(gate, 6, 8))
    np.testing.assert_array_equal(found[gate].of(0), own[0] / 2)
    assert found[gate].coverage == "yes"
