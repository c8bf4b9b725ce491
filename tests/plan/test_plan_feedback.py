"""Plans name the tensors that have error feedback, and refuse moments that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import KEYS, computed_tensor, recipe, shown, stored_tensor, weights
from second_moments import input_of, write_importance, write_moments

import dynquant
from dynquant.arch.base import Model, ModelTensor
from dynquant.conversion.identity import identity_of
from dynquant.conversion.journal import changed
from dynquant.conversion.manifest import parse_manifest
from dynquant.conversion.work import work_of
from dynquant.errors import ConvertError, DynquantError, PlanError
from dynquant.importance.imatrix import read_imatrix
from dynquant.importance.moments import read_moments
from dynquant.inputs import read_inputs
from dynquant.keys import string
from dynquant.plan.feedback import read_feedback
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.recipe.feedback import FeedbackSetting
from dynquant.report.documents import plan_json
from dynquant.report.html import plan_html

DEFAULT = FeedbackSetting(0.2, 1)
SHAPES = {
    "token_embd.weight": (37, 256),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (40, 256),
    "blk.0.attn_k.weight": (8, 256),
    "blk.0.attn_output.weight": (16, 256),
    "blk.0.ffn_gate_inp.weight": (3, 256),
    "blk.0.ffn_down_exps.weight": (3, 5, 256),
    "output.weight": (37, 256),
}
TENSORS = {n: computed_tensor(n, *s, seed=i) for i, (n, s) in enumerate(SHAPES.items())}
Q, K, OUTWARD, DOWN, OUT = (
    f"{name}.weight"
    for name in (
        "blk.0.attn_q",
        "blk.0.attn_k",
        "blk.0.attn_output",
        "blk.0.ffn_down_exps",
        "output",
    )
)
MATRICES = [n for n, s in SHAPES.items() if len(s) > 1]
EVERYTHING = "rules: [{role: [router, embedding], type: Q4_K, override: true}]"


def model(*tensors: ModelTensor) -> Model:
    return Model("llama", dict(KEYS), tensors or tuple(TENSORS.values()), {})


def moments(folder: Path, without: tuple[str, ...] = (), **options: Any) -> Path:
    names = [n for n in MATRICES if n not in (*without, K)]
    inputs = [input_of(*[TENSORS[m] for m in ([n, K] if n == Q else [n])]) for n in names]
    return write_moments(folder / "m.moments.safetensors", *inputs, **options)


def imatrix(folder: Path, without: tuple[str, ...] = ()) -> Path:
    tensors = [TENSORS[n] for n in MATRICES if n not in without]
    return write_importance(folder / "i.gguf", *tensors)


def planned(folder: Path, more: str = EVERYTHING, default: str = "Q4_K", **options: Any) -> Plan:
    return make_plan(
        model(),
        recipe(default, more),
        imatrix=read_imatrix(imatrix(folder)),
        moments=read_moments(moments(folder)),
        **options,
    )


def test_matrices_have_feedback_but_not_embeddings_routers_and_norms(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert {t.name for t in plan.tensors if t.type.name == "Q4_K"} == {*MATRICES}
    assert plan.feedback == dict.fromkeys((Q, K, OUTWARD, DOWN, OUT), DEFAULT)
    assert plan.moments
    assert plan.moments.inputs.keys() >= plan.feedback.keys()
    assert plan.moments.arrays(K)["squares"].shape == (1, 256)


def test_types_are_those_without_moments(tmp_path: Path) -> None:
    without = make_plan(
        model(), recipe("Q4_K", EVERYTHING), imatrix=read_imatrix(imatrix(tmp_path))
    )
    assert planned(tmp_path).tensors == without.tensors
    assert (without.moments, without.feedback) == (None, {})


def test_tensors_without_moments_or_importance_have_no_feedback(tmp_path: Path) -> None:
    plan = make_plan(
        model(),
        recipe("Q4_K"),
        imatrix=read_imatrix(imatrix(tmp_path, (DOWN,))),
        moments=read_moments(moments(tmp_path, (OUTWARD,))),
    )
    assert plan.feedback.keys() == {Q, K, OUT}
    (line,) = [line for line in shown(plan).splitlines() if line.startswith("moments")]
    assert line == (
        "moments m.moments.safetensors: error feedback for 3 tensors (damping 0.2, sweeps 1),"
        " 1.64 MB (1.56 MiB) of memory,"
        f" no moments for {OUTWARD}"
    )


def test_tensors_of_floats_and_copied_tensors_have_no_feedback(tmp_path: Path) -> None:
    rules = f"rules: [{{name: {Q}, type: BF16}}, {{name: {K}, keep: true}}]"
    plan = planned(tmp_path, rules)
    assert plan.feedback.keys() == {OUTWARD, DOWN, OUT}
    stored = stored_tensor(tmp_path / "w", Q, weights(40, 256))
    plan = make_plan(
        model(stored, TENSORS[OUTWARD]),
        recipe("BF16", f"rules: [{{name: {OUTWARD}, type: Q8_0}}]"),
        imatrix=read_imatrix(tmp_path / "i.gguf"),
        moments=read_moments(tmp_path / "m.moments.safetensors"),
    )
    assert plan.feedback.keys() == {OUTWARD}


def test_weights_on_a_grid_that_is_kept_have_no_feedback(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (40, 256)).astype(np.float32)
    codes[:, ::32] = -8  # a scale of each block of Q4_0
    stored = stored_tensor(tmp_path / "w", Q, codes / 8)
    found = read_inputs(
        model(stored, TENSORS[OUTWARD]),
        recipe("Q4_K", f"rules: [{{name: {Q}, keep: true}}]"),
        imatrix(tmp_path),
        moments=moments(tmp_path),
    )
    plan = make_plan(
        found.model,
        found.recipe,
        imatrix=found.imatrix,
        moments=found.moments,
        grids=found.grids,
    )
    assert [t.name for t in plan.tensors if t.on_grid] == [Q]
    assert plan.feedback.keys() == {OUTWARD}


def test_rules_change_the_settings_of_the_recipe(tmp_path: Path) -> None:
    more = f"""
feedback: {{damping: 0.25}}
rules:
  - {{name: {Q}, type: Q4_K, feedback: off}}
  - {{name: {K}, type: Q4_K, feedback: {{sweeps: 0}}}}
  - {{name: {OUTWARD}, type: Q4_K, feedback: {{damping: 1, sweeps: 8}}}}
"""
    plan = planned(tmp_path, more)
    assert plan.feedback == {
        K: FeedbackSetting(0.25, 0),
        OUTWARD: FeedbackSetting(1, 8),
        DOWN: FeedbackSetting(0.25, 1),
        OUT: FeedbackSetting(0.25, 1),
    }
    assert "error feedback for 4 tensors (damping 0.25, sweeps 1 in 2 tensors; damp" in shown(plan)


def test_a_rule_may_have_feedback_where_the_recipe_has_none(tmp_path: Path) -> None:
    more = f"feedback: off\nrules: [{{name: {OUTWARD}, type: Q4_K, feedback: auto}}]"
    assert planned(tmp_path, more).feedback == {OUTWARD: DEFAULT}


@pytest.mark.parametrize(
    ("more", "default", "warning"),
    [
        (
            "feedback: off",
            "Q4_K",
            "recipes/hand.yaml: ignores the second moments m.moments.safetens",
        ),
        ("importance: ignored", "Q4_K", "recipes/hand.yaml: ignores the second moments m.moments."),
        (
            "",
            "F16",
            "the second moments m.moments.safetensors are not used: no tensor that is quant",
        ),
    ],
)
def test_moments_that_are_not_used_are_a_warning_and_leave_no_trace(
    tmp_path: Path, more: str, default: str, warning: str
) -> None:
    plan = planned(tmp_path, more, default)
    assert [w for w in plan.warnings if w.startswith(warning)]
    assert (plan.moments, plan.feedback) == (None, {})
    assert not [k for k in plan.keys if "moments" in k or "feedback" in k]
    assert "m.moments" not in shown(plan)


REQUIRED = {
    "feedback: required": "recipes/hand.yaml: needs second moments (feedback: required); give the"
    " model's moments (--moments FILE)",
    f"rules: [{{name: {OUTWARD}, type: Q4_K, feedback: required}}]": "recipes/hand.yaml:2: needs"
    f" second moments for {OUTWARD} (feedback: required); give the model's moments (--moments"
    " FILE)",
    "feedback: required\nimportance: ignored": "recipes/hand.yaml: feedback: required needs the"
    " importance that importance: ignored ignores; change one of them",
}


@pytest.mark.parametrize("more", REQUIRED)
def test_required_moments_that_are_missing_are_refused(tmp_path: Path, more: str) -> None:
    given = {"imatrix": read_imatrix(imatrix(tmp_path))}
    with pytest.raises(DynquantError) as e:
        make_plan(model(), recipe("Q4_K", more), **given)
    assert list(e.value.messages) == [REQUIRED[more]]
    draft = make_plan(model(), recipe("Q4_K", more), **given, draft=True)
    assert draft.refusals == (REQUIRED[more],)


@pytest.mark.parametrize("more", list(REQUIRED)[:2])
def test_required_moments_are_accepted(tmp_path: Path, more: str) -> None:
    assert OUTWARD in planned(tmp_path, more).feedback


def test_moments_without_an_imatrix_are_an_error(tmp_path: Path) -> None:
    path = moments(tmp_path)
    for given in (path, read_moments(path)):
        with pytest.raises(DynquantError) as e:
            dynquant.make_plan(model(), recipe(), moments=given)
        assert str(e.value) == (
            f"{path}: second moments need the imatrix that `dynquant imatrix --moments` writes"
            " beside them; give it, too (--imatrix FILE)"
        )


def test_faults_of_imatrix_moments_and_recipe_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(b"x")
    with pytest.raises(DynquantError) as e:
        dynquant.make_plan(
            model(), tmp_path / "r.yaml", imatrix=tmp_path / "i", moments=tmp_path / "m"
        )
    assert len(e.value.messages) == 3


def test_moments_of_another_model_are_refused_with_other_faults(tmp_path: Path) -> None:
    other = write_moments(tmp_path / "o", input_of(computed_tensor(Q, 4, 128)))
    with pytest.raises(DynquantError) as e:
        make_plan(
            model(),
            recipe("Q4_K", "rules: [{role: attn_v, type: Q4_K}]"),
            imatrix=read_imatrix(imatrix(tmp_path)),
            moments=read_moments(other),
        )
    assert len(e.value.messages) == 2
    assert "128 channels for the 256 input channels of blk.0.attn_q.weight" in str(e.value)


def test_keys_record_the_file_and_the_settings_of_each_tensor(tmp_path: Path) -> None:
    plan = planned(tmp_path, f"rules: [{{name: {K}, type: Q4_K, feedback: {{sweeps: 0}}}}]")
    assert plan.moments
    keys = {n: k for n, k in plan.keys.items() if "moments" in n or "feedback" in n}
    assert keys == {
        "dynquant.moments": string("m.moments.safetensors"),
        "dynquant.moments_header_sha256": string(plan.moments.header_sha256),
        "dynquant.feedback": keys["dynquant.feedback"],
    }
    text = keys["dynquant.feedback"].value
    assert isinstance(text, str)
    assert json.loads(text) == [
        {"damping": 0.2, "sweeps": 1, "tensors": [Q, OUTWARD, DOWN, OUT]},
        {"damping": 0.2, "sweeps": 0, "tensors": [K]},
    ]
    assert read_feedback(text) == plan.feedback


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[[]]",
        '[{"damping": 2, "sweeps": 1, "tensors": []}]',
        '[{"damping": 1, "sweeps": 9, "tensors": []}]',
        '[{"damping": 1, "sweeps": 1, "tensors": ["a", "a"]}]',
    ],
)
def test_a_damaged_key_is_not_read(text: str) -> None:
    with pytest.raises(ValueError):
        read_feedback(text)


def test_json_table_and_page_name_the_moments(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert plan.moments
    document = plan_json(plan)
    assert document["moments"] == {
        "file": "m.moments.safetensors",
        "header_sha256": plan.moments.header_sha256,
    }
    own = {t["name"]: t["feedback"] for t in document["tensors"]}
    assert own[Q] == {"damping": 0.2, "sweeps": 1}
    assert own["token_embd.weight"] is None
    page = plan_html(plan, None)
    assert "imatrix i.gguf, error feedback by m.moments.safetensors</p>" in page


def test_a_run_with_other_moments_or_settings_is_another_conversion(tmp_path: Path) -> None:
    def found(plan: Plan) -> dict[str, Any]:
        return identity_of(plan, work_of(plan))

    plan = planned(tmp_path)
    assert changed(found(plan), found(planned(tmp_path))) == []
    swept = planned(tmp_path, f"{EVERYTHING}\nfeedback: {{sweeps: 3}}")
    says = [c for c in changed(found(plan), found(swept)) if c.startswith("error feedback")]
    assert says == ["error feedback was damping 0.2, sweeps 1 and is damping 0.2, sweeps 3"]
    moments(tmp_path, seed=1)
    other = replace(plan, moments=read_moments(tmp_path / "m.moments.safetensors"))
    says = [c for c in changed(found(plan), found(other)) if c.startswith("second moments was")]
    assert len(says) == 1


def test_the_manifest_records_the_file_and_the_tensors(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    plan = dynquant.convert(
        model(), out, recipe=recipe("Q8_0"), imatrix=imatrix(tmp_path), moments=moments(tmp_path)
    ).plan
    found = parse_manifest(Path(f"{out}.manifest.json").read_bytes(), "x")
    assert plan.moments and found.moments
    assert found.moments.model_dump() == {
        "file": "m.moments.safetensors",
        "header_sha256": plan.moments.header_sha256,
        "model": "tiny",
        "tokens_sha256": "5" * 64,
    }
    own = {t.name: t.feedback and t.feedback.model_dump() for t in found.tensors}
    assert {n for n, f in own.items() if f} == plan.feedback.keys()
    assert own[Q]
    errors = [own[Q].pop(f"error_{kind}") for kind in ("plain", "feedback")]
    assert own[Q] == {"damping": 0.2, "sweeps": 1, "matrices": 1, "taken": errors[1] < errors[0]}
    assert not [f for f in dynquant.verify(out).faults if "manifest" in f.what]


def test_the_output_never_replaces_the_moments(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert plan.moments
    with pytest.raises(ConvertError, match="is the file of second moments; name another output"):
        dynquant.convert(
            model(),
            plan.moments.path,
            recipe=recipe("Q4_K"),
            imatrix=tmp_path / "i.gguf",
            moments=plan.moments,
            force=True,
        )


def test_required_feedback_needs_moments_of_all_tensors(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as e:
        make_plan(
            model(),
            recipe("Q4_K", "feedback: required"),
            imatrix=read_imatrix(imatrix(tmp_path, (DOWN,))),
            moments=read_moments(moments(tmp_path, (OUTWARD,))),
        )
    (message,) = e.value.messages
    assert message.endswith(
        f"feedback: required, but {OUTWARD}, {DOWN} has no moments in m.moments.safetensors, or no"
        " importance; collect them, or set feedback: auto"
    )
