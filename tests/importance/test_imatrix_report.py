"""The audit of an imatrix finds each defect of a handmade file, and says what is done about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import computed_tensor
from imatrices import Counted, write_counted, write_legacy, write_tensors

from dynquant.arrays import F32
from dynquant.errors import ImportanceError
from dynquant.importance.experts import ALONE, DEFAULT, Policy
from dynquant.importance.imatrix import read_imatrix
from dynquant.importance.report import ImatrixAudit, TensorAudit, audit_of

UP, DOWN, EXPERTS = (f"blk.0.{r}.weight" for r in ("ffn_up", "ffn_down", "ffn_up_exps"))
MODEL = (computed_tensor(UP, 6, 8), computed_tensor(EXPERTS, 3, 6, 8))


def positive(*shape: int, seed: int = 0) -> F32:
    return (1 + np.random.default_rng(seed).random(shape)).astype(np.float32)


def audited(path: Path, policy: Policy = DEFAULT) -> ImatrixAudit:
    return audit_of(read_imatrix(path), MODEL, [t.name for t in MODEL], policy)


def counted(folder: Path, **changes: Counted) -> Path:
    """Write a sound file of both tensors, with changes by role."""
    data: dict[str, Counted] = {
        UP: (positive(1, 8), [500]),
        EXPERTS: (positive(3, 8, seed=1), [200, 900, 400]),
    }
    data |= {f"blk.0.{role}.weight": entry for role, entry in changes.items()}
    return write_counted(folder / "x.gguf", data)


def of(audit: ImatrixAudit, name: str) -> TensorAudit:
    return next(t for t in audit.tensors if t.name == name)


def test_a_sound_file_has_no_problems(tmp_path: Path) -> None:
    found = audited(counted(tmp_path))
    assert found.problems == found.unused == ()
    assert (found.file, found.is_older, found.chunk_count, found.chunk_size) == (
        "x.gguf",
        False,
        7,
        512,
    )
    assert found.datasets == ("books.txt", "more.txt")
    up, experts = found.tensors
    assert (up.counts, experts.counts) == ((500, 500, 500), (200, 400, 900))
    assert (up.use, experts.use) == ("as it is", "mixed with the layer's mean")
    assert experts.mixed == pytest.approx(DEFAULT.shrink / (DEFAULT.shrink + 200))
    sums = positive(3, 8, seed=1)
    assert experts.largest == pytest.approx((sums.max(axis=1) / sums.sum(axis=1)).max())
    assert not (up.signed or experts.signed)


def test_without_shrinking_data_are_used_as_they_are(tmp_path: Path) -> None:
    experts = of(audited(counted(tmp_path), ALONE), EXPERTS)
    assert (experts.use, experts.mixed) == ("as it is", 0.0)


def test_a_tensor_that_is_not_in_the_file_is_weighted_equally(tmp_path: Path) -> None:
    path = write_counted(tmp_path / "x.gguf", {UP: (positive(1, 8), [500])})
    found = audited(path)
    assert of(found, EXPERTS).use == "none: weighted equally"
    assert of(found, EXPERTS).counts is None
    (problem,) = found.problems
    assert problem == f"no importance for {EXPERTS}; their channels are weighted equally"


def test_a_tensor_whose_counts_are_all_zero_is_shown_with_them(tmp_path: Path) -> None:
    found = audited(counted(tmp_path, ffn_up_exps=(positive(3, 8), [0, 0, 0])))
    assert (of(found, EXPERTS).counts, of(found, EXPERTS).without) == ((0, 0, 0), 3)


@pytest.mark.parametrize(
    ("policy", "instead"),
    [(DEFAULT, "have the layer's mean"), (Policy(64, "uniform"), "are weighted equally")],
)
def test_experts_without_data_are_counted(tmp_path: Path, policy: Policy, instead: str) -> None:
    path = counted(tmp_path, ffn_up_exps=(positive(3, 8), [200, 0, 400]))
    experts = of(audited(path, policy), EXPERTS)
    assert (experts.without, experts.counts) == (1, (0, 200, 400))
    assert experts.use == f"mixed with the layer's mean; experts without data {instead}"
    assert any("no importance for 1 of 3 experts" in p for p in audited(path, policy).problems)


def test_few_tokens_are_a_problem(tmp_path: Path) -> None:
    found = audited(counted(tmp_path, ffn_up_exps=(positive(3, 8), [3, 99, 100])))
    assert of(found, EXPERTS).few == 2
    (problem,) = found.problems
    assert problem == (
        f"fewer than 100 tokens for 2 of 3 matrices in {EXPERTS}; make an imatrix with more text"
    )


def test_zero_channels_and_outliers_are_counted(tmp_path: Path) -> None:
    sums = np.array([[0, 1, 1, 1, 1, 1, 101, 99]], np.float32)
    up = of(audited(counted(tmp_path, ffn_up=(sums, [500]))), UP)
    assert (up.zero, up.outliers, up.constant) == (1, 1, 0)
    assert up.largest == pytest.approx(101 / 205)


def test_equal_channels_are_a_problem(tmp_path: Path) -> None:
    sums = positive(3, 8)
    sums[1] = 900
    found = audited(counted(tmp_path, ffn_up_exps=(sums, [200, 900, 400])))
    assert of(found, EXPERTS).constant == 1
    (problem,) = found.problems
    assert problem.startswith(f"all channels are equal in 1 of 3 matrices of {EXPERTS};")


def signed(folder: Path, factor: float) -> Path:
    """Write signed sums whose squared means are `factor` times the mean squares, in 3 channels."""
    sums, n = positive(1, 8), 500
    linear = np.zeros((1, 8), np.float32)
    linear[0, :3] = np.sqrt(factor * sums[0, :3] * n)
    tensors: dict[str, Any] = {
        f"{UP}.in_sum2": sums,
        f"{UP}.counts": np.full((1, 1), n, np.float32),
        f"{UP}.in_sum": linear,
        f"{EXPERTS}.in_sum2": positive(3, 8),
        f"{EXPERTS}.counts": np.full((3, 1), n, np.float32),
    }
    return write_tensors(folder / "x.gguf", tensors)


def test_signed_sums_of_constant_inputs_are_possible(tmp_path: Path) -> None:
    found = audited(signed(tmp_path, 1.0))
    assert (of(found, UP).signed, of(found, EXPERTS).signed) == (True, False)
    assert found.problems == ()


@pytest.mark.parametrize("factor", [np.nan, np.inf])
def test_signed_sums_that_are_not_finite_are_refused(tmp_path: Path, factor: float) -> None:
    with pytest.raises(ImportanceError, match=f"values that are not finite, in {UP}"):
        audited(signed(tmp_path, factor))


def test_a_mean_above_the_root_of_the_mean_square_is_damage(tmp_path: Path) -> None:
    found = audited(signed(tmp_path, 1.01))
    assert of(found, UP).impossible == 3
    (problem,) = found.problems
    assert problem.startswith(f"damaged: 3 channels of {UP} have a mean")


def test_damage_comes_before_missing_data(tmp_path: Path) -> None:
    path = signed(tmp_path, 2.0)
    more = computed_tensor("blk.1.ffn_up.weight", 6, 8)
    names = [UP, EXPERTS, more.name]
    first, second = audit_of(read_imatrix(path), (*MODEL, more), names, DEFAULT).problems
    assert first.startswith("damaged")
    assert second.startswith("no importance")


def test_names_that_are_not_in_the_model_are_listed(tmp_path: Path) -> None:
    found = audited(counted(tmp_path, ffn_norm=(positive(1, 8), [5])))
    assert found.unused == ("blk.0.ffn_norm.weight",)
    assert found.problems == ("ignored, not in the model: blk.0.ffn_norm.weight",)


def test_the_older_format_states_no_counts_of_experts(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "x.dat", {UP: positive(8), EXPERTS: positive(3, 8)})
    found = audited(path)
    assert found.is_older
    assert [t.counts for t in found.tensors] == [None, None]
    assert of(found, EXPERTS).use == "as it is"
    (problem,) = found.problems
    assert problem.startswith(f"no counts of the tokens of each expert in {EXPERTS};")


def test_one_count_for_all_experts_is_a_problem(tmp_path: Path) -> None:
    found = audited(counted(tmp_path, ffn_up_exps=(positive(1, 24), [500])))
    assert of(found, EXPERTS).counts is None
    assert [p for p in found.problems if p.startswith("no counts of the tokens of each expert")]


def test_data_of_another_role_are_named(tmp_path: Path) -> None:
    gate = computed_tensor("blk.0.ffn_gate.weight", 6, 8)
    imatrix = read_imatrix(counted(tmp_path))
    (found,) = audit_of(imatrix, (*MODEL, gate), [gate.name], DEFAULT).tensors
    assert (found.role, found.use) == ("ffn_up", "as it is; of ffn_up")


def test_what_dynquant_recorded_is_kept(tmp_path: Path) -> None:
    tensors = {f"{UP}.in_sum2": positive(1, 8), f"{UP}.counts": np.ones((1, 1), np.float32)}
    path = write_tensors(
        tmp_path / "x.gguf",
        tensors,
        **{"dynquant_imatrix.model": "tiny", "dynquant_imatrix.text_sha256": ["a", "b"]},
    )
    made = audited(path).made
    assert made == {"dynquant.imatrix.model": "tiny", "dynquant.imatrix.text_sha256": "a, b"}


def test_another_models_imatrix_is_an_error(tmp_path: Path) -> None:
    path = counted(tmp_path, ffn_up=(positive(1, 9), [500]))
    with pytest.raises(ImportanceError, match="is the imatrix of another model"):
        audited(path)


def test_the_largest_share_of_the_mean_is_of_the_expert_with_fewest_tokens(tmp_path: Path) -> None:
    path = counted(tmp_path, ffn_up_exps=(positive(3, 8), [0, 10, 400]))
    assert of(audited(path, replace(DEFAULT, shrink=30)), EXPERTS).mixed == pytest.approx(30 / 40)
