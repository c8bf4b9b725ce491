"""A conversion that copies tensors of an earlier output has the bytes of a whole conversion.

The oracle is a conversion without an earlier output.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashes import CALLS, QUICK, at_call, contents, dies, fails
from handmade import computed_tensor, model, recipe, stored_tensor, weights
from imatrices import write_counted
from places import REFERENCES
from second_moments import input_of, write_importance, write_moments
from weighted import spread

from dynquant.arch.base import Model
from dynquant.arch.load import load_model
from dynquant.conversion.result import Result
from dynquant.conversion.reuse import old as old_module
from dynquant.conversion.reuse.old import Old, read_old
from dynquant.conversion.reuse.origin import origin_of
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError, ManifestError
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.importance.moments import read_moments
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.shards import Split
from dynquant.quants import ALL
from dynquant.quants.encoder import CORE, Batch, Encoded
from dynquant.tensors import ShardFile, Stored, TensorSource, parts_of
from dynquant.transforms.computed import Elementwise, ScaledInputs

NAMES = ("token_embd.weight", "blk.0.ffn_down.weight", "blk.0.ffn_up.weight", "output_norm.weight")
SHAPES = ((37, 256), (67, 512), (67, 256), (256,))

RECIPES = {
    "q4": ("Q4_K", ""),
    "more": ("Q4_K", "rules: [{role: ffn_down, type: Q6_K}, {role: token_embd, type: F16}]"),
    "best": ("Q4_K", "effort: best"),
    "f16": ("F16", "rules: [{role: ffn_down, type: Q4_K}]"),
}


def whole(folder: Path, *, seeds: tuple[int, ...] = (0, 1, 2, 3)) -> Model:
    """Return a model with each tensor in a separate file."""
    return model(
        *(
            stored_tensor(folder / f"{n}.safetensors", name, weights(*shape, seed=seed))
            for n, (name, shape, seed) in enumerate(zip(NAMES, SHAPES, seeds, strict=True))
        )
    )


def imatrix(folder: Path, seed: int = 0) -> Imatrix:
    entries = {
        "blk.0.ffn_down.weight": (spread(1, 512, seed=seed), [1]),
        "blk.0.ffn_up.weight": (spread(1, 256, seed=seed + 1), [1]),
    }
    return read_imatrix(write_counted(folder / f"i{seed}.gguf", entries))


def plan_of(its: Model, name: str, means: Imatrix | None = None) -> Plan:
    return make_plan(its, recipe(*RECIPES[name]), imatrix=means)


class Watching:
    """An encoder that counts the rows that are encoded to another type than they have."""

    preferred_bytes = 4096

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()

    def encode(self, batch: Batch, *, measure: bool = True) -> Encoded:
        if batch.stored != batch.type:
            self.rows[batch.type.name] += batch.n_rows
        return CORE.encode(batch, measure=measure)


def made(plan: Plan, folder: Path, **options: Any) -> tuple[Result, dict[str, bytes]]:
    folder.mkdir()
    result = convert_plan(plan, folder / "x.gguf", **(QUICK | {"manifest": "read"} | options))
    return result, contents(folder)


def reusing(plan: Plan, old: Path, folder: Path, **options: Any) -> tuple[Result, dict[str, bytes]]:
    return made(plan, folder, reuse=read_old(old), **options)


def earlier(plan: Plan, folder: Path, **options: Any) -> Path:
    """Write an output, and return its path."""
    return made(plan, folder, **options)[0].path


@pytest.mark.parametrize("after", RECIPES)
@pytest.mark.parametrize("before", RECIPES)
def test_other_recipes_give_the_bytes_of_a_whole_conversion(
    before: str, after: str, tmp_path: Path
) -> None:
    its, means = whole(tmp_path), imatrix(tmp_path)
    old = earlier(plan_of(its, before, means), tmp_path / "old")
    plan = plan_of(its, after, means)
    _, expected = made(plan, tmp_path / "oracle")
    result, found = reusing(plan, old, tmp_path / "new")
    assert found == expected
    assert result.reused is not None
    types = [{t.name: t.type for t in plan_of(its, n, means).tensors} for n in (before, after)]
    same_effort = (before == "best") == (after == "best")
    assert set(result.reused.names) == {
        name for name in NAMES
        if types[0][name] == types[1][name] and (same_effort or types[1][name].is_float)
    }  # fmt: skip
    assert result.reused.n_bytes == sum(
        t.n_bytes for t in plan.tensors if t.name in result.reused.names
    )


def test_copied_tensors_are_not_encoded(tmp_path: Path) -> None:
    its, encoder = whole(tmp_path), Watching()
    old = earlier(plan_of(its, "q4"), tmp_path / "old")
    result, _ = reusing(
        plan_of(its, "more"), old, tmp_path / "new", encoder=encoder, verify_sample=0
    )
    assert encoder.rows == {"Q6_K": 67, "F16": 37}
    assert result.reused is not None
    assert result.reused.encoded == {"another type": NAMES[:2]}


def test_tensors_of_a_changed_file_are_encoded(tmp_path: Path) -> None:
    old = earlier(plan_of(whole(tmp_path), "q4"), tmp_path / "old")
    plan = plan_of(whole(tmp_path, seeds=(0, 9, 2, 3)), "q4")
    _, expected = made(plan, tmp_path / "oracle")
    result, found = reusing(plan, old, tmp_path / "new")
    assert found == expected
    assert result.reused is not None
    assert result.reused.encoded == {"other weights, or read in another way": (NAMES[1],)}


def test_with_another_imatrix_only_tensors_without_importance_are_copied(tmp_path: Path) -> None:
    its = whole(tmp_path)
    old = earlier(plan_of(its, "q4", imatrix(tmp_path)), tmp_path / "old")
    for n, means in enumerate((imatrix(tmp_path, 7), None)):
        plan = plan_of(its, "q4", means)
        _, expected = made(plan, tmp_path / f"oracle{n}")
        result, found = reusing(plan, old, tmp_path / f"new{n}")
        assert found == expected
        assert result.reused is not None
        assert set(result.reused.names) == {NAMES[0], NAMES[3]}


def test_another_model_is_encoded_completely(tmp_path: Path) -> None:
    old = earlier(plan_of(whole(tmp_path), "q4"), tmp_path / "old")
    plan = plan_of(whole(tmp_path, seeds=(4, 5, 6, 7)), "q4")
    _, expected = made(plan, tmp_path / "oracle")
    result, found = reusing(plan, old, tmp_path / "new")
    assert found == expected
    assert result.reused is not None
    assert not result.reused.names


def test_damaged_tensors_are_encoded(tmp_path: Path) -> None:
    plan = plan_of(whole(tmp_path), "q4")
    result, expected = made(plan, tmp_path / "old")
    with result.path.open("r+b") as file:
        file.seek(-300, os.SEEK_END)
        file.write(b"\x5a")
    again, found = reusing(plan, result.path, tmp_path / "new")
    assert found == expected
    assert again.reused is not None
    assert again.reused.encoded == {"its bytes in x.gguf are damaged": (NAMES[3],)}


def test_tensors_that_change_while_they_are_copied_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(whole(tmp_path), "q4")
    old = earlier(plan, tmp_path / "old")
    check = Old.damaged

    def then_damage(self: Old, *given: Any) -> set[str]:
        found = check(self, *given)
        with old.open("r+b") as file:
            file.seek(-300, os.SEEK_END)
            file.write(b"\x5a")
        return found

    monkeypatch.setattr(old_module.Old, "damaged", then_damage)
    with pytest.raises(ConvertError, match=r"output_norm\.weight.*(changed|different bytes)"):
        reusing(plan, old, tmp_path / "new", verify_sample=0)
    assert not (tmp_path / "new" / "x.gguf").exists()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("encoder_revision", 4, "is of encoder revision 4, this is"),
        ("version", "0.0.9", "is of dynquant 0.0.9, this is"),
    ],
)
def test_outputs_of_other_versions_are_not_copied(
    key: str, value: object, reason: str, tmp_path: Path
) -> None:
    plan = plan_of(whole(tmp_path), "q4")
    result, expected = made(plan, tmp_path / "old")
    assert result.manifest is not None
    document = json.loads(result.manifest.read_text())
    document["dynquant"][key] = value
    result.manifest.write_text(json.dumps(document))
    again, found = reusing(plan, result.path, tmp_path / "new")
    assert found == expected
    assert again.reused is not None
    (found_reason,) = again.reused.encoded
    assert reason in found_reason
    assert not again.reused.names


def test_manifests_without_source_hashes_decide_nothing(tmp_path: Path) -> None:
    plan = plan_of(whole(tmp_path), "q4")
    old = earlier(plan, tmp_path / "old", manifest="none")
    result, found = reusing(plan, old, tmp_path / "new")
    assert found == made(plan, tmp_path / "oracle")[1]
    assert result.reused is not None
    assert [*result.reused.encoded] == [
        "the manifest of x.gguf does not record the origin of its weights"
    ]


@pytest.mark.parametrize("manifest", ["auto", "none"])
def test_the_manifest_is_that_of_a_whole_conversion(manifest: str, tmp_path: Path) -> None:
    plan = plan_of(whole(tmp_path), "more")
    old = earlier(plan_of(whole(tmp_path), "q4"), tmp_path / "old")
    _, found = reusing(plan, old, tmp_path / "new", manifest=manifest)
    assert found == made(plan, tmp_path / "oracle", manifest=manifest)[1]


def test_an_output_in_shards_is_copied_into_one_file_and_back(tmp_path: Path) -> None:
    its = whole(tmp_path)
    plans = [
        make_plan(its, recipe("Q4_K"), split=Split(max_tensors=n) if n else None) for n in (2, 0)
    ]
    for n, (before, after) in enumerate((plans, plans[::-1])):
        old = earlier(before, tmp_path / f"old{n}")
        result, found = reusing(after, old, tmp_path / f"new{n}")
        assert found == made(after, tmp_path / f"oracle{n}")[1]
        assert result.reused is not None
        assert result.reused.names == NAMES


def test_error_feedback_is_copied_with_its_figures(tmp_path: Path) -> None:
    matrix = computed_tensor("blk.0.ffn_down.weight", 150, 512, seed=2)
    other = computed_tensor("token_embd.weight", 37, 256, seed=1)
    its = model(other, matrix)

    def plan(seed: int, embedding: str) -> Plan:
        moments = tmp_path / f"m{seed}.moments.safetensors"
        given = input_of(matrix, n_moments=1)
        return make_plan(
            its,
            recipe("IQ2_XXS", f"feedback: auto\nrules: [{{role: token_embd, type: {embedding}}}]"),
            imatrix=read_imatrix(write_importance(tmp_path / "i.gguf", matrix)),
            moments=read_moments(write_moments(moments, given, seed=seed)),
        )

    old = earlier(plan(0, "Q8_0"), tmp_path / "old")
    for n, (seed, names) in enumerate([(0, (matrix.name,)), (1, ())]):
        after = plan(seed, "Q6_K")
        result, found = reusing(after, old, tmp_path / f"new{n}")
        assert found == made(after, tmp_path / f"oracle{n}")[1]
        assert result.reused is not None
        assert result.reused.names == names
        assert matrix.name in result.gains


# ---- refused ----


def test_an_output_without_a_manifest_is_refused(tmp_path: Path) -> None:
    old = earlier(plan_of(whole(tmp_path), "q4"), tmp_path / "old", manifest=None)
    with pytest.raises(ManifestError, match="not found"):
        read_old(old)


@pytest.mark.parametrize("change", ["removed", "shortened"])
def test_an_output_that_is_not_the_recorded_one_is_refused(change: str, tmp_path: Path) -> None:
    old = earlier(plan_of(whole(tmp_path), "q4"), tmp_path / "old")
    manifest = tmp_path / "old" / "x.gguf.manifest.json"
    if change == "removed":
        old.unlink()
    else:
        os.truncate(old, 900)
    with pytest.raises(ConvertError, match=r"x\.gguf: (not found, though|has 900 bytes, not)"):
        read_old(manifest)


def test_the_output_cannot_replace_what_it_reuses(tmp_path: Path) -> None:
    plan = plan_of(whole(tmp_path), "q4")
    result, before = made(plan, tmp_path / "old")
    with pytest.raises(ConvertError, match="is a file of the output that is reused"):
        convert_plan(plan, result.path, force=True, reuse=read_old(result.path))
    assert contents(tmp_path / "old") == before


# ---- interrupted ----


def test_an_interrupted_run_resumes_with_the_same_output_only(tmp_path: Path) -> None:
    its = whole(tmp_path)
    old = earlier(plan_of(its, "q4"), tmp_path / "old")
    other = earlier(plan_of(its, "f16"), tmp_path / "other")
    plan, out = plan_of(its, "more"), tmp_path / "new" / "x.gguf"
    options: dict[str, Any] = QUICK | {"manifest": "read"}
    out.parent.mkdir()
    with at_call(("pwrite",), 12, fails(errno.EIO)), pytest.raises(ConvertError):
        convert_plan(plan, out, reuse=read_old(old), **options)
    for given in (None, read_old(other)):
        with pytest.raises(ConvertError, match=r"journal: reuse was manifest sha256"):
            convert_plan(plan, out, reuse=given, **options)
    result = convert_plan(plan, out, reuse=read_old(old), **options)
    assert contents(out.parent) == made(plan, tmp_path / "oracle")[1]
    assert result.resumed_bytes


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    its = whole(tmp_path)
    old = earlier(plan_of(its, "q4"), tmp_path / "old")
    plan = plan_of(its, "more")
    _, expected = made(plan, tmp_path / "oracle")
    for number in range(1, 60, 4):
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        pid = os.fork()
        if not pid:
            try:
                with at_call(CALLS, number, dies):
                    convert_plan(
                        plan, folder / "x.gguf", reuse=read_old(old), manifest="read", **QUICK
                    )
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        if not (folder / "x.gguf").exists() or (folder / "x.gguf.journal").exists():
            convert_plan(plan, folder / "x.gguf", reuse=read_old(old), manifest="read", **QUICK)
        assert contents(folder) == expected, number


# ---- origins ----


def stored(path: Path, **changes: Any) -> Stored:
    path.write_bytes(bytes(4096))
    return replace(Stored(ShardFile(path), 0, (4, 256), ALL["BF16"]), **changes)


def doubled(factor: float) -> Any:
    return lambda x: x * np.float32(factor)


@dataclass
class Nameless:
    value: object
    shape = (4, 256)
    stored = ALL["F32"]

    def read(self, start: int, stop: int, into: Any) -> None:
        raise NotImplementedError


def test_everything_that_changes_rows_changes_the_origin(tmp_path: Path) -> None:
    path = tmp_path / "w"
    plain = stored(path)
    sources: list[TensorSource] = [
        plain,
        stored(path, offset=2),
        stored(path, shape=(2, 512)),
        stored(path, stored=ALL["F16"]),
        ScaledInputs(plain, 0.5),
        ScaledInputs(plain, 0.25),
        ScaledInputs(ScaledInputs(plain, 0.25), 1.0),
        Elementwise(plain, np.exp),
        Elementwise(plain, np.negative),
        Elementwise(plain, doubled(2)),
        Elementwise(plain, doubled(3)),
        Elementwise(plain, lambda x: x + 1),
    ]
    one, other = {path: "1" * 64}, {path: "2" * 64}
    origins = [origin_of(s, files) for s in sources for files in (one, other)]
    assert None not in origins
    assert len(set(origins)) == len(origins)
    assert origin_of(stored(path), one) == origins[0]


def test_sources_without_a_lasting_name_have_no_origin(tmp_path: Path) -> None:
    assert origin_of(Nameless({1, 2}), {}) is None
    assert origin_of(Nameless(object()), {}) is None
    assert origin_of(Nameless(3), {}) is not None
    assert origin_of(stored(tmp_path / "w"), {}) is None


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(p.parent.name for p in REFERENCES.glob("*/config.json")))
def test_each_tensor_of_each_family_has_an_origin_that_loading_again_does_not_change(
    family: str,
) -> None:
    def origins() -> dict[str, str | None]:
        found = load_model(REFERENCES / family)
        sources = {t.name: t.source for t in found.tensors}
        return {
            name: origin_of(s, {f.path: f.path.name for f in parts_of(s, ShardFile)})
            for name, s in sources.items()
        }

    one = origins()
    assert None not in one.values()
    assert origins() == one
