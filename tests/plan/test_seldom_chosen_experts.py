"""A plan records what experts with few tokens have; conversion, verification and saved plans agree.

The model is a tiny Qwen3-MoE of transformers with five experts in a layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from handmade import recipe
from imatrices import write_counted
from places import TESTS

import dynquant
from dynquant.conversion.identity import identity_of
from dynquant.conversion.journal import changed
from dynquant.conversion.work import work_of
from dynquant.errors import PlanError
from dynquant.importance.experts import ALONE, DEFAULT, Policy
from dynquant.keys import string, u32
from dynquant.plan import make
from dynquant.verification.against import compare

MODEL = TESTS / "references" / "qwen3moe"
UP, DOWN = "blk.{}.ffn_up_exps.weight", "blk.{}.ffn_down_exps.weight"
COUNTS = [1, 200, 0, 30, 9]
POLICY = "importance: {{shrink: {}, unseen: {}}}"


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imatrix of all matrices; an expert of each layer has no tokens."""
    entries: dict[str, Any] = {}
    chance = np.random.default_rng(5)
    for tensor in dynquant.load_model(MODEL).tensors:
        if len(tensor.shape) > 1 and tensor.parts.layer is not None:
            counts = COUNTS if len(tensor.shape) == 3 else [240]
            means = chance.lognormal(0, 2, (len(counts), tensor.n_per_row))
            sums = (means * np.array(counts)[:, None]).astype(np.float32)
            entries[tensor.name] = sums, counts
    return write_counted(tmp_path_factory.mktemp("imatrix") / "i.gguf", entries)


def planned(imatrix: Path | None, more: str = "", default: str = "Q8_0") -> dynquant.Plan:
    rules = "rules: [{role: experts, type: Q4_0, fallback: F16}]\nfallback: F16\n"
    return dynquant.make_plan(MODEL, recipe(default, rules + more), imatrix=imatrix)


def blocks(path: Path, name: str) -> Any:
    return next(t.data for t in gguf.GGUFReader(path).tensors if t.name == name)


def test_blocks_are_those_of_the_formula(imatrix: Path, tmp_path: Path) -> None:
    planned(imatrix, POLICY.format(50, "mean")).write(tmp_path / "x.gguf", threads=1)
    name = UP.format(1)
    sums = next(t.data for t in gguf.GGUFReader(imatrix).tensors if t.name == f"{name}.in_sum2")
    n = np.array(COUNTS, float)[:, None]
    means = sums / np.maximum(n, 1)
    scales = means.mean(axis=1, keepdims=True)
    shapes = means / np.where(scales > 0, scales, 1)
    layer = np.average(shapes, axis=0, weights=(n / (n + 50))[:, 0])
    wanted = (n * shapes + 50 * layer) / (n + 50)
    dynquant.convert(MODEL, tmp_path / "f32.gguf", recipe="f32", threads=1)
    for expert, weights in enumerate(blocks(tmp_path / "f32.gguf", name)):
        made = dynquant.encode(weights, "Q4_0", wanted[expert].astype(np.float32))
        np.testing.assert_array_equal(blocks(tmp_path / "x.gguf", name)[expert], made)


def test_the_policy_changes_the_bytes_of_experts_only(imatrix: Path, tmp_path: Path) -> None:
    for name, shrink in (("a", 0), ("b", 64)):
        planned(imatrix, POLICY.format(shrink, "mean")).write(tmp_path / f"{name}.gguf", threads=1)
    readers = [gguf.GGUFReader(tmp_path / f"{n}.gguf").tensors for n in "ab"]
    different = {
        a.name for a, b in zip(*readers, strict=True) if not np.array_equal(a.data, b.data)
    }
    assert different == {n.format(i) for i in range(2) for n in (UP, UP.replace("up", "gate"))}


def test_keys_and_manifest_record_the_policy(imatrix: Path, tmp_path: Path) -> None:
    plan = planned(imatrix, POLICY.format(7, "uniform"))
    assert plan.keys["dynquant.imatrix_shrink"] == u32(7)
    assert plan.keys["dynquant.imatrix_unseen"] == string("uniform")
    plan.write(tmp_path / "x.gguf", threads=1)
    found = dynquant.read_manifest(tmp_path / "x.gguf").importance
    assert found
    assert (found.shrink, found.unseen) == (7, "uniform")
    assert dynquant.verify(tmp_path / "x.gguf").is_sound


def test_a_manifest_with_another_policy_than_the_file_is_a_fault(
    imatrix: Path, tmp_path: Path
) -> None:
    planned(imatrix).write(tmp_path / "x.gguf", threads=1)
    manifest = tmp_path / "x.gguf.manifest.json"
    manifest.write_text(manifest.read_text().replace('"shrink": 64', '"shrink": 65'))
    (fault,) = dynquant.verify(tmp_path / "x.gguf").faults
    assert fault.what.startswith("dynquant.imatrix_shrink is 64, but 65 in the manifest")


def test_without_an_imatrix_no_policy_is_recorded() -> None:
    assert not [key for key in planned(None).keys if "imatrix" in key]


@pytest.mark.parametrize("policy", [DEFAULT, ALONE, Policy(500, "uniform"), Policy(0, "mean")])
def test_verification_uses_the_policy_of_the_file(
    imatrix: Path, tmp_path: Path, policy: Policy
) -> None:
    out = tmp_path / "x.gguf"
    planned(imatrix, POLICY.format(policy.shrink, policy.unseen)).write(out, threads=1)
    found = compare(out, str(MODEL), tensors="*", imatrix=dynquant.load_imatrix(imatrix))
    assert (found.faults, found.unchecked) == ((), ())


def test_files_without_a_policy_are_verified_as_they_were_made(
    imatrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_of = make.quantizer_keys
    monkeypatch.setattr(
        make,
        "quantizer_keys",
        lambda *a: {
            n: k
            for n, k in keys_of(*a).items()
            if n not in ("dynquant.imatrix_shrink", "dynquant.imatrix_unseen")
        },
    )
    read = dynquant.load_imatrix(imatrix)
    out, other = tmp_path / "x.gguf", tmp_path / "y.gguf"
    planned(imatrix, POLICY.format(0, "uniform")).write(out, threads=1)
    planned(imatrix).write(other, threads=1)
    assert compare(out, str(MODEL), tensors="*", imatrix=read).faults == ()
    assert compare(other, str(MODEL), tensors="*", imatrix=read).faults


def test_a_saved_plan_keeps_the_policy(imatrix: Path, tmp_path: Path) -> None:
    plan = planned(imatrix, POLICY.format(12, "uniform"))
    plan.save(tmp_path / "plan.json")
    again = dynquant.load_plan(tmp_path / "plan.json", MODEL, imatrix=imatrix)
    assert again.experts == Policy(12, "uniform")
    for made, name in ((plan, "a"), (again, "b")):
        made.write(tmp_path / f"{name}.gguf", threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_saved_plan_with_a_changed_policy_is_refused(imatrix: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    planned(imatrix).save(path)
    document = json.loads(path.read_text())
    document["importance"] |= {"shrink": 3, "unseen": "uniform"}
    path.write_text(json.dumps(document))
    with pytest.raises(PlanError) as e:
        dynquant.load_plan(path, MODEL, imatrix=imatrix)
    shrink, unseen = e.value.messages
    assert "importance.shrink is 3, and the key dynquant.imatrix_shrink 64;" in shrink
    assert "importance.unseen is 'uniform', and the key dynquant.imatrix_unseen 'mean';" in unseen


def test_an_interrupted_run_with_another_policy_is_not_resumed(imatrix: Path) -> None:
    plans = [planned(imatrix, POLICY.format(*p)) for p in ((64, "mean"), (65, "uniform"))]
    changes = changed(*(identity_of(plan, work_of(plan)) for plan in plans))
    assert "shrink was 64 and is 65" in changes
    assert "experts without data was mean and is uniform" in changes


def test_unseen_experts_and_tensors_can_be_refused(imatrix: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(imatrix).tensors
    entries = {
        t.name.removesuffix(".in_sum2"): (np.array(t.data), COUNTS if "exps" in t.name else [1])
        for t in reader
        if t.name.endswith(".in_sum2") and "blk.1.attn_" not in t.name
    }
    path = write_counted(tmp_path / "i.gguf", entries)
    with pytest.raises(PlanError) as e:
        planned(path, "importance: {unseen: error}")
    (message,) = e.value.messages
    assert message == (
        "recipes/hand.yaml: needs importance for all tensors and experts (unseen: error), and"
        f" {path} has none for blk.1.attn_q.weight, blk.1.attn_k.weight,"
        " blk.1.attn_v.weight, none for 4 of 20 experts in"
        " blk.{0-1}.ffn_gate_exps.weight, blk.{0-1}.ffn_up_exps.weight; make an imatrix with more"
        " text, or set `unseen: mean`"
    )


def test_a_complete_imatrix_is_not_refused(tmp_path: Path, imatrix: Path) -> None:
    entries = {
        t.name.removesuffix(".in_sum2"): (np.array(t.data) + 1, [5] * len(np.array(t.data)))
        for t in gguf.GGUFReader(imatrix).tensors
        if t.name.endswith(".in_sum2")
    }
    path = write_counted(tmp_path / "i.gguf", entries)
    assert planned(path, "importance: {unseen: error}").refusals == ()


def test_tensors_of_float_types_need_no_data(imatrix: Path) -> None:
    rules = "rules: [{role: experts, type: F16}]\nfallback: F16\nimportance: {unseen: error}"
    plan = dynquant.make_plan(MODEL, recipe("Q8_0", rules), imatrix=imatrix)
    assert plan.refusals == ()


@pytest.mark.parametrize("name", ["dynamic-moe-1.58bit", "dynamic-moe-2bit", "dynamic-moe-3bit"])
def test_shipped_recipes_accept_an_imatrix_with_unseen_experts(imatrix: Path, name: str) -> None:
    plan = dynquant.make_plan(MODEL, name, imatrix=imatrix)
    (warning,) = [w for w in plan.warnings if "experts in" in w]
    assert warning.endswith("; they have the mean of their layer")
