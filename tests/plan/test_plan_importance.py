"""Plans record importance, and types that need it are refused without it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import DOWN, N_PER_ROW, computed_tensor, model, recipe, shown, small_plan
from imatrices import write_counted, write_legacy

from dynquant.errors import ImportanceError, PlanError
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.keys import string, u32
from dynquant.plan.checks import SPECIAL_TYPES
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants.table import ALL
from dynquant.report.documents import plan_json

MIXED = "rules: [{role: ffn_down, layers: 1, type: Q4_0}]"


def imatrix(folder: Path, n_per_row: int = 2 * N_PER_ROW) -> Imatrix:
    """Return an imatrix of the first of two layers, in the older format."""
    return read_imatrix(write_legacy(folder / "x.dat", {DOWN: np.ones(n_per_row, np.float32)}))


def weighted_plan(folder: Path, default: str = "Q4_0", more: str = "") -> Plan:
    return make_plan(model(), recipe(default, more), imatrix=imatrix(folder))


def test_imatrix_is_recorded_in_the_keys_of_llama_cpp_and_by_its_hash(tmp_path: Path) -> None:
    keys = weighted_plan(tmp_path).keys
    sha256 = hashlib.sha256((tmp_path / "x.dat").read_bytes()).hexdigest()
    assert {n: k for n, k in keys.items() if "imatrix" in n} == {
        "quantize.imatrix.file": string("x.dat"),
        "quantize.imatrix.dataset": string("books.txt"),
        "quantize.imatrix.entries_count": u32(1),
        "quantize.imatrix.chunks_count": u32(7),
        "dynquant.imatrix_sha256": string(sha256),
        "dynquant.imatrix_shrink": u32(64),
        "dynquant.imatrix_unseen": string("mean"),
    }
    assert list(keys).index("tokenizer.ggml.model") == len(keys) - 2


def test_facts_missing_in_an_imatrix_give_no_key(tmp_path: Path) -> None:
    keys = {"imatrix_datasets": None, "imatrix_chunk_count": None}
    path = write_counted(tmp_path / "x", {DOWN: (np.ones((1, 512), np.float32), [1])}, **keys)
    made = make_plan(model(), recipe(), imatrix=read_imatrix(path)).keys
    assert [n for n in made if n.startswith("quantize.")] == [
        "quantize.imatrix.file",
        "quantize.imatrix.entries_count",
    ]


def test_keys_of_an_imatrix_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"quantize\.imatrix\.file: the plan decides this key"):
        make_plan(model(), recipe(), set_keys={"quantize.imatrix.file": "mine"})


def test_plan_records_whether_each_tensor_has_importance(tmp_path: Path) -> None:
    plan = weighted_plan(tmp_path)
    assert {t.name: t.importance for t in plan.tensors if t.importance} == {DOWN: "yes"}
    assert plan.unweighted == (
        "token_embd.weight",
        "blk.1.ffn_down.weight",
        "blk.1.ffn_up_exps.weight",
    )
    document = plan_json(plan)
    assert document["imatrix"] == "x.dat"
    assert [t["importance"] for t in document["tensors"]] == [None, None, "yes", None, None, None]


def test_experts_without_data_are_counted(tmp_path: Path) -> None:
    sums = np.ones((3, N_PER_ROW), np.float32)
    path = write_counted(tmp_path / "x", {"blk.1.ffn_up_exps.weight": (sums, [1, 0, 1])})
    plan = make_plan(model(), recipe(), imatrix=read_imatrix(path))
    assert plan.tensors[4].importance == "partial: 2 of 3 experts"
    assert any("1 of 3 experts in blk.1.ffn_up_exps.weight" in w for w in plan.warnings)
    assert (
        "imatrix x: importance for 1 tensor (1 of their experts have none), none for"
        " blk.{0-1}.ffn_down.weight\n"
    ) in shown(plan)


def test_importance_of_a_tensor_with_the_same_inputs_is_stated_once(tmp_path: Path) -> None:
    roles = ("ffn_gate", "attn_k", "attn_v")
    names = [f"blk.{n}.{role}.weight" for role in roles for n in range(3)]
    tensors = [computed_tensor(name, 4, N_PER_ROW) for name in names]
    ones = (np.ones((1, N_PER_ROW), np.float32), [2])
    used = ("ffn_gate_up", "attn_q")
    entries = {f"blk.{n}.{role}.weight": ones for role in used for n in range(3)}
    path = write_counted(tmp_path / "x", entries)
    plan = make_plan(model(*tensors), recipe(), imatrix=read_imatrix(path))
    assert {t.importance for t in plan.tensors} == {"yes, of ffn_gate_up", "yes, of attn_q"}
    assert plan.warnings == plan.unweighted == ()
    assert (
        "importance of tensors with the same inputs: blk.{0-2}.ffn_gate.weight from ffn_gate_up;"
        " blk.{0-2}.attn_k.weight, blk.{0-2}.attn_v.weight from attn_q\n"
    ) in shown(plan)


def test_quantized_tensors_without_importance_give_a_warning(tmp_path: Path) -> None:
    (warning,) = weighted_plan(tmp_path).warnings
    assert "no importance for blk.1.ffn_down.weight, blk.1.ffn_up_exps.weight;" in warning


def test_float_types_neither_have_nor_miss_importance(tmp_path: Path) -> None:
    plan = weighted_plan(tmp_path, "F16")
    assert plan.warnings == plan.unweighted == ()
    assert {t.importance for t in plan.tensors} == {None}
    assert not plan.importance


def test_another_models_imatrix_is_an_importance_error(tmp_path: Path) -> None:
    with pytest.raises(ImportanceError, match="imatrix of another model: 96 values for the 512"):
        make_plan(model(), recipe(), imatrix=imatrix(tmp_path, 96))


def test_problems_of_imatrix_recipe_and_keys_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as e:
        make_plan(
            model(),
            recipe(more="rules: [{role: attn_v, type: Q4_0}]"),
            imatrix=imatrix(tmp_path, 96),
            set_keys={"dynquant.version": "1"},
        )
    assert len(e.value.messages) == 3


NEEDING = [t.name for t in ALL.values() if t.needs_importance]
EXPERTS = "blk.1.ffn_up_exps.weight"


def missing_importance(more: str = "", default: str = "IQ2_XS", **options: Any) -> tuple[str, ...]:
    with pytest.raises(PlanError) as e:
        make_plan(model(), recipe(default, more), **options)
    return e.value.messages


@pytest.mark.parametrize("default", NEEDING)
def test_types_that_need_importance_are_refused_without_an_imatrix(default: str) -> None:
    assert missing_importance(default=default) == (
        f"recipes/hand.yaml:1 default: {default} needs importance, and there is none for"
        f" blk.{{0-1}}.ffn_down.weight, {EXPERTS}; give the model's imatrix (--imatrix FILE), or"
        " use another type",
    )


def test_tensors_without_importance_are_reported_for_each_rule() -> None:
    rule, default = missing_importance(MIXED.replace("Q4_0", "IQ1_S"))[::-1]
    assert rule.startswith("recipes/hand.yaml:2: IQ1_S needs importance")
    assert "none for blk.1.ffn_down.weight;" in rule
    assert f"none for {DOWN}, {EXPERTS};" in default


def test_only_tensors_missing_in_the_imatrix_are_refused(tmp_path: Path) -> None:
    (message,) = missing_importance(imatrix=imatrix(tmp_path))
    assert f"and {tmp_path / 'x.dat'} has none for blk.1.ffn_down.weight, {EXPERTS};" in message
    assert "give an imatrix that covers them" in message


@pytest.mark.slow
def test_other_types_need_no_imatrix() -> None:
    for name in ALL.keys() - set(NEEDING) - set(SPECIAL_TYPES):
        assert small_plan(name).warnings == ()


@pytest.mark.parametrize("name", SPECIAL_TYPES)
def test_types_of_specially_trained_models_are_a_warning(name: str) -> None:
    (warning,) = small_plan(name).warnings
    assert f"recipes/hand.yaml: {name} is for models that are trained with such weights" in warning


def test_embedding_and_output_need_no_importance_as_in_llama_quantize() -> None:
    tensors = [computed_tensor(n, 2, N_PER_ROW) for n in ("token_embd.weight", "output.weight")]
    assert make_plan(model(*tensors), recipe("IQ1_S")).type_counts == {"IQ1_S": 2}


def test_experts_without_data_are_a_warning_even_for_types_that_need_importance(
    tmp_path: Path,
) -> None:
    entries = {EXPERTS: (np.ones((3, N_PER_ROW), np.float32), [1, 0, 1])}
    path = write_counted(tmp_path / "x", entries)
    more = "rules: [{role: ffn_up_exps, type: IQ1_S}]"
    plan = make_plan(model(), recipe("F16", more), imatrix=read_imatrix(path))
    (warning,) = plan.warnings
    assert f"no importance for 1 of 3 experts in {EXPERTS};" in warning


def test_missing_importance_is_reported_with_other_problems() -> None:
    assert len(missing_importance(set_keys={"llama.block_count": "two"})) == 2


def test_imatrix_of_another_model_is_not_also_reported_as_incomplete(tmp_path: Path) -> None:
    with pytest.raises(ImportanceError) as e:
        make_plan(model(), recipe("IQ2_XS"), imatrix=imatrix(tmp_path, 96))
    assert len(e.value.messages) == 1
