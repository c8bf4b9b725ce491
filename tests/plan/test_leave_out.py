"""`--leave-out`: stored tensors that are no part of the model, in plans, files and verification."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of, shapes_of, tensors_of, write_checkpoint
from handmade import recipe, shown
from inprocess import Done, run
from places import TINY_BOOKS
from typer.testing import CliRunner

import dynquant
from dynquant.arch.base import Model
from dynquant.arch.load import load_model
from dynquant.cli import app
from dynquant.conversion.identity import identity_of
from dynquant.conversion.journal import changed
from dynquant.conversion.work import work_of
from dynquant.errors import ArchitectureError, DynquantError
from dynquant.inputs import load_plan
from dynquant.plan.make import make_plan
from dynquant.plan.saved import read_plan, write_plan

HEAD = {"v_head.summary.weight": (1, 16), "v_head.summary.bias": (1,)}


def stored(folder: Path, *names: str, **changes: Any) -> Path:
    """Write a small Llama with further tensors: those of HEAD, or of the given names."""
    config = config_of("LlamaForCausalLM", **changes)
    extra = dict.fromkeys(names, (4,)) or HEAD
    weights = {n: np.ones(s, np.float32) for n, s in extra.items()}
    folder.mkdir(exist_ok=True)
    return write_checkpoint(folder, config, tensors_of(config) | weights)


def load(folder: Path, *globs: str) -> Model:
    return load_model(folder, needs_vocab=False, leave_out=globs)


def refusal(folder: Path, *globs: str) -> list[str]:
    with pytest.raises(ArchitectureError) as e:
        load(folder, *globs)
    return [m.removeprefix(f"{folder}: ") for m in e.value.messages]


def test_one_glob_may_be_a_string(tmp_path: Path) -> None:
    model = load_model(stored(tmp_path), needs_vocab=False, leave_out="v_head.*")
    assert set(model.ignored) >= {"v_head.summary.bias", "v_head.summary.weight"}


def test_a_value_head_is_one_message_that_names_the_option(tmp_path: Path) -> None:
    assert refusal(stored(tmp_path)) == [
        "v_head.summary.bias, v_head.summary.weight are no tensors of llama as config.json"
        " describes it; to convert the model without them, add --leave-out 'v_head.*'"
    ]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["score.weight"], "--leave-out 'score.*'"),
        (["score"], "--leave-out 'score'"),
        (["model.value.weight", "model.value.bias"], "--leave-out 'model.value.*'"),
        (["a.b.c", "a.d.e", "z.w"], "--leave-out 'a.*' --leave-out 'z.*'"),
        (["odd[1].w*"], "--leave-out 'odd[[]1].*'"),
        (["tower.layers.0.w", "tower.layers.1.w"], "--leave-out 'tower.*'"),
    ],
)
def test_the_options_of_the_message_leave_out_exactly_these_tensors(
    names: list[str], options: str, tmp_path: Path
) -> None:
    (message,) = refusal(stored(tmp_path, *names))
    assert message.endswith(f", add {options}")
    globs = [part.strip(" '") for part in options.split("--leave-out")[1:]]
    assert set(load(tmp_path, *globs).ignored) == set(names)


@pytest.mark.parametrize(
    "name", ["lm_head.bias", "model.layers.0.self_attn.gate.weight", "model.norm.scale.x"]
)
def test_the_option_is_not_offered_for_tensors_inside_the_model(name: str, tmp_path: Path) -> None:
    """Without them the file would probably answer differently."""
    (message,) = refusal(stored(tmp_path, name))
    assert message == (
        f"{name} is not a tensor of llama as config.json describes it; the output would not"
        " contain it, so take weights and config.json from one model"
    )
    model = load(tmp_path, name)
    (warning,) = (w for w in make_plan(model, recipe("F16"), draft=True).warnings if name in w)
    assert warning.endswith("it is inside the model, whose answers may change")


def test_the_option_is_not_offered_if_tensors_are_missing(tmp_path: Path) -> None:
    config = config_of("LlamaForCausalLM")
    weights = tensors_of(config) | {"v_head.w": np.ones(1, np.float32)}
    del weights["model.norm.weight"]
    messages = refusal(write_checkpoint(tmp_path, config, weights))
    assert [m.partition(" ")[0] for m in messages] == ["model.norm.weight", "v_head.w"]
    assert "--leave-out" not in str(messages)


def test_glob_that_matches_nothing_is_refused_with_similar_names(tmp_path: Path) -> None:
    stored(tmp_path)
    assert refusal(tmp_path, "v_head.*", "v_haed.*") == [
        "--leave-out 'v_haed.*' matches no stored tensor; did you mean 'v_head.*'?"
    ]
    assert refusal(tmp_path, "v_head.*", "model.norm.wieght") == [
        "--leave-out 'model.norm.wieght' matches no stored tensor; did you mean"
        " 'model.norm.weight'?"
    ]


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("model.norm.*", "model.norm.weight"),
        ("*.self_attn.?_proj.weight", "model.layers.{0-1}.self_attn.k_proj.weight, "),
        ("*", "lm_head.weight, "),
    ],
)
def test_glob_that_matches_tensors_of_the_model_is_refused(
    glob: str, names: str, tmp_path: Path
) -> None:
    (message,) = refusal(stored(tmp_path), "v_head.*", glob)
    assert message.startswith(names)
    assert message.endswith(f"; give a narrower pattern than --leave-out {glob!r}")
    assert ("would be missing, and llama needs") in message


def test_a_head_that_replaces_a_tied_embedding_is_a_tensor_of_the_model(tmp_path: Path) -> None:
    """transformers and llama.cpp use a stored head that differs from the embedding."""
    folder = stored(tmp_path, "v_head.w", tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text())
    head = {"lm_head.weight": np.ones((24, 16), np.float32)}
    write_checkpoint(folder, config, tensors_of(config) | head)
    assert "lm_head.weight would be missing" in refusal(folder, "lm_head.*")[0]


def test_an_optional_tensor_of_the_model_is_needed_if_it_is_stored(tmp_path: Path) -> None:
    config = config_of("Qwen2ForCausalLM")
    write_checkpoint(tmp_path, config, tensors_of(config))
    assert any(name.endswith(".bias") for name in shapes_of(config))
    assert "would be missing" in refusal(tmp_path, "*.bias")[0]


def test_tensors_that_are_left_out_anyway_keep_their_reason(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    (reason,) = load(stored(tmp_path, name), "*.inv_freq").ignored.values()
    assert reason.startswith("llama.cpp computes")


def test_plan_lists_what_is_left_out_in_one_line(tmp_path: Path) -> None:
    plan = make_plan(load(stored(tmp_path), "v_head.*"), recipe("F16"), draft=True)
    names = "v_head.summary.bias, v_head.summary.weight"
    assert f"ignored: {names}: as requested (--leave-out 'v_head.*')" in shown(plan)
    assert [w for w in plan.warnings if "v_head" in w] == [
        "left out: 2 tensors, v_head.summary.bias and others: as requested (--leave-out 'v_head.*')"
    ]
    assert plan.leave_out == ("v_head.*",)


def test_tensors_are_those_of_the_model_without_the_head(tmp_path: Path) -> None:
    whole = load(stored(tmp_path), "v_head.*")
    config = config_of("LlamaForCausalLM")
    plain = load(write_checkpoint(tmp_path, config, tensors_of(config)))
    assert [t.name for t in whole.tensors] == [t.name for t in plain.tensors]
    assert whole.keys == plain.keys


def test_a_journal_of_other_patterns_is_another_conversion(tmp_path: Path) -> None:
    stored(tmp_path)
    plans = [make_plan(load(tmp_path, g), recipe("F16")) for g in ("v_head.*", "v_*")]
    one, other = (identity_of(plan, work_of(plan)) for plan in plans)
    assert changed(one, other) == ["--leave-out was ['v_head.*'] and is ['v_*']"]


def test_a_gguf_refuses_the_option(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError) as e:
        load_model(tmp_path / "x.gguf", leave_out=["v_head.*"])
    assert "a rule of the recipe (`drop: true`)" in str(e.value)


def test_a_loaded_model_refuses_the_option(tmp_path: Path) -> None:
    model = load(stored(tmp_path), "v_head.*")
    with pytest.raises(DynquantError, match="leave_out="):
        dynquant.make_plan(model, "f16", leave_out=["v_head.*"], draft=True)


# With a tokenizer: a whole conversion.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """tiny-books with a value head."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_BOOKS, folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    at = len(content) - end
    header["v_head.summary.weight"] = {
        "dtype": "F32",
        "shape": [1, 256],
        "data_offsets": [at, at + 1024],
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:] + bytes(1024))
    return folder


def convert(model: Path, out: Path, *options: str) -> Done:
    return run("convert", str(model), "-o", str(out), "-r", "f16", "--quiet", *options)


@pytest.mark.slow
def test_file_and_manifest_record_it_and_verify_repeats_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    assert convert(model, out, "--leave-out", "v_head.*").code == 0
    manifest = dynquant.read_manifest(out)
    assert manifest.leave_out == ["v_head.*"]
    assert list(manifest.ignored) == ["v_head.summary.weight"]
    done = run("verify", str(out), "--against", str(model), "--tensors", "*")
    assert (done.code, done.err) == (0, "")
    (tmp_path / "a.gguf.manifest.json").unlink()
    done = run("verify", str(out), "--against", str(model))
    assert "add --leave-out 'v_head.*'" in done.err
    done = run("verify", str(out), "--against", str(model), "--leave-out", "v_head.*")
    assert (done.code, done.err) == (0, "")


@pytest.mark.slow
def test_verify_against_another_model_does_not_mention_the_patterns(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.gguf"
    convert(model, out, "--leave-out", "v_head.*")
    other = stored(tmp_path / "other", "x_head.w")
    done = run("verify", str(out), "--against", str(other))
    assert done.code == 1
    assert "--leave-out 'x_head.*'" in done.err
    assert "v_head" not in done.err


@pytest.mark.slow
def test_saved_plan_keeps_the_patterns(model: Path, tmp_path: Path) -> None:
    plan = dynquant.make_plan(model, "f16", leave_out=["v_head.*"])
    write_plan(plan, tmp_path / "p.json")
    assert read_plan(tmp_path / "p.json").leave_out == ["v_head.*"]
    bound = load_plan(tmp_path / "p.json", model)
    assert (bound.leave_out, bound.ignored) == (plan.leave_out, plan.ignored)
    done = convert(model, tmp_path / "a.gguf", "--plan", str(tmp_path / "p.json"))
    assert "leave out --recipe" in done.err


@pytest.mark.slow
def test_commands_about_recipes_take_the_option(model: Path, tmp_path: Path) -> None:
    option = ("--leave-out", "v_head.*")
    for command in (
        ("check", "f16", str(model)),
        ("explain", "f16", str(model), "output_norm"),
        ("export", "q8_0", str(model)),
        ("diff", "f16", "q8_0", str(model)),
    ):
        assert CliRunner().invoke(app, ["recipe", *command]).exit_code == 1
        assert CliRunner().invoke(app, ["recipe", *command, *option]).exit_code == 0


@pytest.mark.slow
def test_leave_out_is_for_a_comparison() -> None:
    assert "require --against MODEL" in run("verify", "a.gguf", "--leave-out", "v").err
