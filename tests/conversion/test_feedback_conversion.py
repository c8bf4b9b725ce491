"""Conversions with error feedback: the same bytes however they run, and plain where none is taken.

The oracles are an undisturbed conversion, one without feedback, and the core on whole matrices.
"""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashes import QUICK, at_call, contents, dies, killed, looks_complete, made, resumed
from gguf import GGUFReader
from handmade import KEYS, computed_tensor, recipe
from second_moments import input_of, write_importance, write_moments

import dynquant
from dynquant.arch.base import Model
from dynquant.conversion.manifest import Feedback as InManifest
from dynquant.conversion.manifest import parse_manifest
from dynquant.conversion.write import convert_plan
from dynquant.feedback.decided import TensorGain, gained_text
from dynquant.feedback.factors import KEPT, Factors
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants import ALL
from dynquant.quants.feedback import Factor, Feedback, encode_floats_with_feedback, factor_of
from dynquant.quants.search import NORMAL

DOWN, UP = "blk.0.ffn_down.weight", "blk.1.ffn_up_exps.weight"
N_EXPERTS = 3
RULES = "rules: [{role: ffn_down, type: Q4_K}]"


def planned(folder: Path, *, feedback: str = "auto", each: bool = False, **more: Any) -> Plan:
    """Return a plan with feedback for a matrix of 150 rows, and for experts."""
    folder.mkdir(exist_ok=True)
    tensors = (
        computed_tensor("token_embd.weight", 37, 256, seed=1),
        computed_tensor(DOWN, 150, 512, seed=2),
        computed_tensor(UP, N_EXPERTS, 67, 256, seed=3),
    )
    matrices = tensors[1:]
    inputs = [input_of(t, n_moments=N_EXPERTS if each and t.name == UP else 1) for t in matrices]
    moments = write_moments(folder / "m.moments.safetensors", *inputs, **more)
    imatrix = write_importance(folder / "i.gguf", *matrices)
    return make_plan(
        Model("llama", dict(KEYS), tensors, {}),
        recipe("IQ2_XXS", f"feedback: {feedback}\n{RULES}"),
        imatrix=dynquant.load_imatrix(imatrix),
        moments=dynquant.load_moments(moments),
    )


def data_of(path: Path) -> dict[str, bytes]:
    return {t.name: t.data.tobytes() for t in GGUFReader(path).tensors}


def written(plan: Plan, out: Path, **options: Any) -> dict[str, bytes]:
    convert_plan(plan, out, **(QUICK | options))
    return data_of(out)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def expected(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return made(plan, tmp_path_factory.mktemp("feedback") / "whole")


@pytest.mark.parametrize(("threads", "chunk_bytes"), [(1, 1), (3, 5000), (4, 1 << 24)])
def test_threads_and_chunks_do_not_change_the_bytes(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, threads: int, chunk_bytes: int
) -> None:
    folder = tmp_path / "x"
    assert made(plan, folder, threads=threads, chunk_bytes=chunk_bytes) == expected


@pytest.mark.parametrize("number", [3, 8, 12])
def test_a_killed_conversion_resumes_to_the_same_bytes(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    def die() -> None:
        with at_call(("pwrite",), number, dies):
            convert_plan(plan, tmp_path / "x.gguf", **QUICK)

    assert killed(die, lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT))
    assert not looks_complete(tmp_path, expected)
    resumed(plan, tmp_path)
    assert contents(tmp_path) == expected


def test_blocks_are_those_of_the_core(plan: Plan, tmp_path: Path) -> None:
    found = written(plan, tmp_path / "x.gguf")
    assert plan.moments
    setting = plan.feedback[DOWN]
    factor = factor_of(plan.moments.row(DOWN, "correlations", 0), 512, setting.damping)
    importance = plan.importance[DOWN].of(0)
    assert importance is not None
    source = plan.sources[DOWN].source
    rows = np.empty(150 * 512 * 4, np.uint8)
    source.read(0, 150, rows)
    out = np.empty((150, ALL["Q4_K"].row_size(512)), np.uint8)
    feedback = Feedback(factor, importance, setting.sweeps)
    encode_floats_with_feedback(rows, source.stored, ALL["Q4_K"], out, feedback, NORMAL)
    assert found[DOWN] == out.tobytes()


@pytest.mark.parametrize("each", [False, True])
def test_the_manifest_says_what_was_gained(tmp_path: Path, each: bool) -> None:
    plan = planned(tmp_path, each=each)
    result = convert_plan(plan, tmp_path / "x.gguf", manifest="none", **QUICK)
    assert result.manifest
    found = {t.name: t.feedback for t in parse_manifest(result.manifest.read_bytes(), "x").tensors}
    assert found.pop("token_embd.weight") is None
    for name, n in ((DOWN, 1), (UP, N_EXPERTS)):
        its = found[name]
        assert isinstance(its, InManifest)
        assert (its.matrices, its.taken) == (n, n)
        assert 0 < its.error_feedback < 0.9 * its.error_plain


def test_a_matrix_that_gains_nothing_on_held_out_text_is_encoded_plainly(tmp_path: Path) -> None:
    plan = planned(tmp_path / "one", other_held_out=True)
    plain = planned(tmp_path / "other", feedback="off")
    result = convert_plan(plan, tmp_path / "x.gguf", manifest="none", **QUICK)
    assert data_of(tmp_path / "x.gguf") == written(plain, tmp_path / "plain.gguf")
    assert {name: gain.n_taken for name, gain in result.gains.items()} == {DOWN: 0, UP: 0}
    for gain in result.gains.values():
        assert gain.feedback >= gain.plain


def test_feedback_changes_its_tensors_and_no_others(plan: Plan, tmp_path: Path) -> None:
    with_feedback = written(plan, tmp_path / "x.gguf")
    without = written(planned(tmp_path, feedback="off"), tmp_path / "plain.gguf")
    differ = {name for name, data in with_feedback.items() if data != without[name]}
    assert differ == {DOWN, UP}


def test_few_factors_stay_in_memory(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Factor]] = []
    real = Factors.of

    def noted(self: Factors, tensor: str, matrix: int, damping: float) -> Factor:
        found = real(self, tensor, matrix, damping)
        if not any(each() is found for each in made):
            made.append(weakref.ref(found))
        gc.collect()
        assert sum(each() is not None for each in made) <= KEPT + 1
        return found

    monkeypatch.setattr(Factors, "of", noted)
    convert_plan(planned(tmp_path / "each", each=True), tmp_path / "x.gguf", threads=1)
    assert len(made) > KEPT + 1


def test_what_was_gained_is_said_in_a_line() -> None:
    gains = [TensorGain(1, 1, 4.0, 1.0), TensorGain(3, 2, 1.0, 1.0), TensorGain(2, 0, 1.0, 9.0)]
    assert gained_text(gains) == (
        "3 of 6 matrices; on held-out text the error of their outputs falls by 50%"
    )
    assert gained_text([TensorGain(2, 0, 0.0, 0.0)]) == "0 of 2 matrices"


def test_the_check_at_the_end_encodes_with_feedback(plan: Plan, tmp_path: Path) -> None:
    convert_plan(plan, tmp_path / "x.gguf", verify_sample=20, **QUICK)
