"""A file that was made with second moments is compared with its source only with the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
from agreement import load_reference
from handmade import recipe
from inprocess import Done, run
from second_moments import input_of, write_importance, write_moments

import dynquant
from dynquant.checkpoint.gguf_shards import open_gguf
from dynquant.errors import DynquantError, VerificationError
from dynquant.verification.maker import Maker

MODEL = load_reference("llama-2").folder
FALLBACK = "fallback: F16\n"


class Made:
    """A file, and the inputs that it was made with."""

    def __init__(self, folder: Path) -> None:
        tensors = [
            t
            for t in dynquant.load_model(MODEL).tensors
            if t.name.startswith("blk.") and len(t.shape) == 2
        ]
        self.out = folder / "x.gguf"
        self.imatrix = write_importance(folder / "i.gguf", *tensors)
        self.moments = write_moments(folder / "m.safetensors", *map(input_of, tensors))
        rules = "rules: [{role: attn_v, type: Q8_0, feedback: {damping: 0.1, sweeps: 0}}]"
        self.plan = dynquant.convert(
            MODEL,
            self.out,
            recipe=recipe("Q4_0", FALLBACK + rules),
            imatrix=self.imatrix,
            moments=self.moments,
            threads=1,
        ).plan

    def verify(self, **given: Any) -> dynquant.Verification:
        return dynquant.verify(self.out, MODEL, imatrix=self.imatrix, sample=4, **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def test_keys_of_the_file_say_which_tensors_have_feedback(made: Made) -> None:
    maker = Maker.of(open_gguf(made.out))
    assert made.plan.moments
    assert maker.moments == made.plan.moments.header_sha256
    assert maker.feedback == made.plan.feedback
    settings = {dynquant.FeedbackSetting(), dynquant.FeedbackSetting(0.1, 0)}
    assert {*maker.feedback.values()} == settings


def test_the_file_is_sound_and_equals_its_source(made: Made) -> None:
    assert dynquant.verify(made.out).is_sound
    assert made.verify(moments=made.moments).faults == ()
    assert made.verify(moments=dynquant.load_moments(made.moments)).faults == ()


def test_missing_moments_are_named_before_the_file_is_read(made: Made) -> None:
    seen: list[object] = []
    with pytest.raises(
        VerificationError, match=r"was made with second moments, header sha256 \w{64}"
    ):
        made.verify(progress=lambda *now: seen.append(now))
    assert not seen


def test_missing_imatrix_and_moments_are_named_together(made: Made) -> None:
    with pytest.raises(VerificationError) as e:
        dynquant.verify(made.out, MODEL)
    assert [m.rpartition("; ")[2] for m in e.value.messages] == [
        "name it with --imatrix",
        "name their file with --moments",
    ]


def test_files_that_are_swapped_are_named_together(made: Made) -> None:
    with pytest.raises(DynquantError) as e:
        dynquant.verify(made.out, MODEL, imatrix=made.moments, moments=made.imatrix)
    assert [m.partition("; ")[0] for m in e.value.messages] == [
        f"{made.moments}: is a file of second moments, not an imatrix",
        f"{made.imatrix}: is an imatrix, not a file of second moments",
    ]


def test_other_moments_are_refused(made: Made, tmp_path: Path) -> None:
    (first, *_) = [t for t in dynquant.load_model(MODEL).tensors if t.name in made.plan.feedback]
    other = write_moments(tmp_path / "o", input_of(first))
    with pytest.raises(
        VerificationError, match=r"o: has header sha256 \w{64}, but .* was made with"
    ):
        made.verify(moments=other)


def test_moments_that_the_file_was_made_without_are_refused(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    dynquant.convert(MODEL, out, recipe="q8_0", threads=1)
    with pytest.raises(VerificationError, match=r"was made without second moments; remove --mom"):
        dynquant.verify(out, MODEL, moments=made.moments)


def test_moments_without_a_source_are_an_error(made: Made) -> None:
    with pytest.raises(VerificationError, match="name the model to compare with"):
        dynquant.verify(made.out, moments=made.moments)


def test_a_manifest_of_other_moments_is_a_fault(made: Made, tmp_path: Path) -> None:
    out = Path(shutil.copy(made.out, tmp_path))
    document = json.loads(Path(f"{made.out}.manifest.json").read_text())
    document["moments"]["header_sha256"] = "0" * 64
    Path(f"{out}.manifest.json").write_text(json.dumps(document))
    (fault,) = dynquant.verify(out).faults
    assert fault.what.startswith("dynquant.moments_header_sha256 is ")


def test_a_damaged_key_is_named(made: Made, tmp_path: Path) -> None:
    out = Path(shutil.copy(made.out, tmp_path))
    content = out.read_bytes()
    assert content.count(b'[{"damping": ') == 1
    out.write_bytes(content.replace(b'[{"damping": ', b'[{"damping"; '))
    with pytest.raises(VerificationError, match=r"the key dynquant\.feedback is damaged; convert"):
        dynquant.verify(out, MODEL, moments=made.moments)


def test_a_tensor_with_feedback_but_without_moments_is_a_fault(made: Made, tmp_path: Path) -> None:
    out = Path(shutil.copy(made.out, tmp_path))
    content = out.read_bytes()
    name = b'"blk.0.attn_q.weight"'
    assert content.count(name) == 1
    out.write_bytes(content.replace(name, b'"token_embd.weight"'.ljust(len(name))))
    found = dynquant.verify(out, MODEL, imatrix=made.imatrix, moments=made.moments, sample=4)
    (fault,) = found.faults
    assert (fault.tensor, fault.what) == (
        "token_embd.weight",
        "has error feedback, but no second moments",
    )


# The command


def verify(*arguments: object) -> Done:
    return run("verify", *arguments)


def test_the_command_takes_the_moments(made: Made) -> None:
    given = ("--against", MODEL, "--imatrix", made.imatrix)
    assert verify(made.out, *given, "--moments", made.moments, "--sample", 2).code == 0
    refused = verify(made.out, *given)
    assert refused.code == 1
    assert "name their file with --moments" in refused.err
    assert verify(made.out, "--moments", made.moments).code == 2


def test_commands_plan_and_convert_with_moments(made: Made, tmp_path: Path) -> None:
    given = (MODEL, "-r", "q8_0", "--moments", made.moments)
    refused = run("plan", *given)
    assert refused.code == 1
    assert refused.err.startswith(f"error: {made.moments}: second moments need the imatrix that")
    given = (*given, "--imatrix", made.imatrix)
    plan, out = tmp_path / "p.json", tmp_path / "o.gguf"
    done = run("plan", *given, "--save", plan)
    assert done.code == 0
    assert (
        "moments m.safetensors: error feedback for 12 tensors (damping 0.2, sweeps 1)" in done.out
    )
    assert "damping 0.2, sweeps 1  recipes/q8_0" in run("plan", *given, "--tensors").out
    dry = run("convert", *given, "-o", out, "--dry-run")
    assert "error feedback for 12 tensors" in dry.out
    saved = ("--plan", plan, "--imatrix", made.imatrix, "--moments", made.moments)
    done = run("convert", MODEL, *saved, "-o", out)
    assert done.code == 0
    assert "error feedback: 12 of 12 matrices; on held-out text" in done.err
    keys = gguf.GGUFReader(out).fields
    assert keys["dynquant.moments"].contents() == "m.safetensors"


def test_explain_and_diff_show_what_rules_say(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(
        "default: Q8_0\nfallback: F16\nrules: [{role: attn_v, type: Q4_0, feedback: off}]"
    )
    other.write_text(
        "default: Q8_0\nfallback: F16\nrules: [{role: attn_v, type: Q4_0, feedback: {sweeps: 3}}]"
    )
    explained = run("recipe", "explain", one, MODEL, "blk.0.attn_v").out
    assert "Q4_0, feedback off" in explained
    found = json.loads(run("recipe", "explain", other, MODEL, "blk.0.attn_v", "--json").out)
    assert [s["feedback"] for s in found[0]["steps"]] == ["{sweeps: 3}", None]
    table = run("recipe", "diff", one, other, MODEL).out
    assert "Q4_0, no feedback" in table
    assert "Q4_0, damping 0.2, sweeps 3" in table
    document = json.loads(run("recipe", "diff", one, other, MODEL, "--json").out)
    assert {c["name"].split(".")[2] for c in document["changes"]} == {"attn_v"}
    assert {c["feedback_after"] for c in document["changes"]} == {"damping 0.2, sweeps 3"}


def test_diff_of_a_recipe_and_its_file_does_not_compare_feedback(
    made: Made, tmp_path: Path
) -> None:
    same = tmp_path / "same.yaml"
    same.write_text(
        "default: Q4_0\nfallback: F16\nrules: [{role: attn_v, type: Q8_0, feedback: off}]"
    )
    assert "0 of" in run("recipe", "diff", same, made.out, MODEL).out
    assert "0 of" not in run("recipe", "diff", same, MODEL / "none.gguf", MODEL).out


def test_diff_of_two_files_shows_their_feedback(made: Made, tmp_path: Path) -> None:
    plain = tmp_path / "plain.gguf"
    dynquant.convert(
        MODEL,
        plain,
        recipe=recipe("Q4_0", f"{FALLBACK}rules: [{{role: attn_v, type: Q8_0}}]"),
        threads=1,
    )
    table = run("recipe", "diff", plain, made.out).out
    assert "Q4_0, no feedback" in table
    assert "Q8_0, damping 0.1, sweeps 0" in table
