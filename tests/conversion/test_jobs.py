"""Every row is encoded once, in order, with the importance of its matrix; oracle: counting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from handmade import model, recipe, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from imatrices import write_counted

from dynquant.arch.base import ModelTensor
from dynquant.conversion.jobs import Done, Job, jobs
from dynquant.conversion.scope import Scope
from dynquant.conversion.work import work_of
from dynquant.importance.imatrix import read_imatrix
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.tensors import Computed

EXPERTS = "blk.0.ffn_up_exps.weight"
N_EXPERTS, N_ROWS = 5, 23


def experts_plan(folder: Path | None) -> Plan:
    """Plan a norm and a stack of experts, each with separate importance if a folder is given."""
    tensors = (
        ModelTensor("blk.0.attn_norm.weight", Computed(weights(40))),
        ModelTensor(EXPERTS, Computed(weights(N_EXPERTS, N_ROWS, 64))),
    )
    imatrix = None
    if folder:
        means = np.ones((N_EXPERTS, 64), np.float32)
        imatrix = read_imatrix(write_counted(folder / "i", {EXPERTS: (means, [1] * N_EXPERTS)}))
    return make_plan(model(*tensors), recipe("Q4_0"), imatrix=imatrix)


@st.composite
def done_ranges(draw: st.DrawFn) -> list[Done]:
    """Draw ranges that an earlier run could have done: ordered, each within one matrix."""
    cuts = draw(st.sets(st.integers(0, N_EXPERTS * N_ROWS), max_size=12))
    edges = sorted(cuts | {i * N_ROWS for i in range(N_EXPERTS + 1)})
    pairs = pairwise(edges)
    return [Done(1, a, b, 7) for a, b in pairs if draw(st.booleans())]


def check_coverage(found: Sequence[Job]) -> None:
    assert [job.number for job in found] == list(range(len(found)))
    for index, n in ((0, 1), (1, N_EXPERTS * N_ROWS)):
        rows = [row for j in found if j.tensor.number == index for row in range(j.start, j.stop)]
        assert rows == list(range(n))


@pytest.mark.slow
@settings(max_examples=60)
@given(chunk_bytes=st.integers(1, 20_000), done=done_ranges())
def test_every_row_comes_once_in_order_and_done_ranges_are_unchanged(
    chunk_bytes: int, done: list[Done]
) -> None:
    found = list(jobs(Scope.whole(work_of(PLAIN)), chunk_bytes, {1: done}))
    check_coverage(found)
    assert [job.done for job in found if job.done] == done
    for job in found:
        if job.done:
            assert (job.done.start, job.done.stop) == (job.start, job.stop)
        else:
            assert job.n_rows == 1 or job.n_rows * 64 * 4 <= chunk_bytes


@pytest.mark.slow
def test_no_range_crosses_matrices_with_different_importance(tmp_path: Path) -> None:
    plan = experts_plan(tmp_path)

    @settings(max_examples=60)
    @given(chunk_bytes=st.integers(1, 20_000), done=done_ranges())
    def check(chunk_bytes: int, done: list[Done]) -> None:
        found = list(jobs(Scope.whole(work_of(plan)), chunk_bytes, {1: done}))
        check_coverage(found)
        for job in found:
            if job.tensor.number == 1:
                assert job.start // N_ROWS == (job.stop - 1) // N_ROWS == job.matrix

    check()


PLAIN = experts_plan(None)
