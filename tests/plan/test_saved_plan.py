"""A saved plan gives the same bytes as its recipe, and each input that does not match is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from checkpoints import config_of, tensors_of, write_checkpoint
from imatrices import write_counted
from inprocess import run
from jsonschema import Draft202012Validator
from places import TINY_BOOKS

import dynquant
from dynquant.errors import PlanError
from dynquant.plan import bind, saved
from dynquant.plan.saved import parse_plan, plan_schema

FAMILIES = ("deepseek-v3", "gemma3", "gpt-oss-mxfp4", "qwen3next", "bert")


def written(plan: dynquant.Plan, path: Path) -> bytes:
    return plan.write(path, threads=1).path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_plan_gives_the_same_bytes(family: str, tmp_path: Path) -> None:
    folder = load_reference(family).folder
    plan = dynquant.make_plan(folder, "dynamic-4bit")
    plan.save(tmp_path / "plan.json")
    again = dynquant.load_plan(tmp_path / "plan.json", folder)
    assert written(again, tmp_path / "b.gguf") == written(plan, tmp_path / "a.gguf")
    assert again.to_json() | {"warnings": []} == {
        **plan.to_json(),
        "warnings": [],
        "tensors": [t | {"rule": plan.recipe.short(t["rule"])} for t in plan.to_json()["tensors"]],
        "ignored": {n: plan.recipe.short(r) for n, r in plan.ignored.items()},
    }


@pytest.mark.slow
def test_shards_and_keys_are_part_of_a_saved_plan(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "split": dynquant.Split(max_tensors=20),
        "set_keys": {"general.name": "Mine", "my.number": "7"},
    }
    plan = dynquant.make_plan(TINY_BOOKS, "q8_0", **options)
    plan.save(tmp_path / "plan.json")
    again = dynquant.load_plan(tmp_path / "plan.json", TINY_BOOKS)
    assert (again.keys, again.shards) == (plan.keys, plan.shards)
    assert list(again.keys) == list(plan.keys)


@pytest.mark.slow
def test_saved_plan_keeps_the_layout_of_attention(tmp_path: Path) -> None:
    folder = load_reference("deepseek-v3").folder
    plan = dynquant.make_plan(folder, "q8_0", mla="merged")
    plan.save(tmp_path / "plan.json")
    again = dynquant.load_plan(tmp_path / "plan.json", folder)
    assert [t.name for t in again.tensors] == [t.name for t in plan.tensors]


@pytest.mark.slow
def test_commands_save_a_plan_and_convert_with_it(tmp_path: Path) -> None:
    plan, out, direct = tmp_path / "p.json", tmp_path / "a.gguf", tmp_path / "b.gguf"
    assert run("plan", TINY_BOOKS, "-r", "dynamic-4bit", "--save", plan).code == 0
    assert run("convert", TINY_BOOKS, "--plan", plan, "-o", out).code == 0
    assert run("convert", TINY_BOOKS, "-r", "dynamic-4bit", "-o", direct).code == 0
    assert out.read_bytes() == direct.read_bytes()


@pytest.mark.slow
def test_an_existing_plan_is_replaced_only_with_force(tmp_path: Path) -> None:
    plan = tmp_path / "p.json"
    plan.write_text("mine")
    refused = run("plan", TINY_BOOKS, "-r", "q8_0", "--save", plan)
    assert (refused.code, plan.read_text()) == (1, "mine")
    assert refused.err.startswith(f"error: {plan}: exists; replace it with --force")
    assert run("plan", TINY_BOOKS, "-r", "q8_0", "--save", plan, "--force").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [("-r", "q8_0"), ("--effort", "best"), ("--set", "a.b=1"), ("--mla", "split")]
)
def test_options_fixed_by_a_plan_are_wrong_usage(option: tuple[str, ...], tmp_path: Path) -> None:
    done = run("convert", TINY_BOOKS, "--plan", tmp_path / "p", "-o", tmp_path / "o", *option)
    assert done.code == 2
    assert "--plan decides it already" in done.err


@pytest.mark.slow
def test_recipe_or_plan_is_required(tmp_path: Path) -> None:
    done = run("convert", TINY_BOOKS, "-o", tmp_path / "o.gguf")
    assert done.code == 2
    assert "--recipe R, --target-size SIZE, or --plan PLAN.json" in " ".join(done.err.split())


def test_a_draft_cannot_be_saved(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    config = config_of("LlamaForCausalLM", intermediate_size=32)
    folder.mkdir()
    write_checkpoint(folder, config, tensors_of(config))
    plan = dynquant.make_plan(folder, "q8_0", draft=True)
    with pytest.raises(PlanError, match="tokenizer"):
        plan.save(tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


# Inputs that do not match


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of a small model, to be changed."""
    return Path(shutil.copytree(load_reference("llama-2").folder, tmp_path / "model"))


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> Path:
    dynquant.make_plan(model, "q8_0").save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def messages(plan: Path, model: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(dynquant.DynquantError) as e:
        dynquant.load_plan(plan, model, **options)
    assert all(m.startswith(str(plan)) for m in e.value.messages)
    return tuple(m.removeprefix(f"{plan}: ") for m in e.value.messages)


def edited(plan: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads(plan.read_text())
    edit(document)
    plan.write_text(json.dumps(document))
    return plan


def config_with(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_changed_setting_of_the_model_is_named(plan: Path, model: Path) -> None:
    config_with(model, rope_theta=12345.0)
    (message,) = messages(plan, model)
    assert message == "key llama.rope.freq_base was 10000.0, and is 12345.0 in the model"


def test_a_changed_source_file_is_named(plan: Path, model: Path) -> None:
    path = model / "model.safetensors"
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n]) | {"__metadata__": {"edited": "yes"}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + n :])
    (message,) = messages(plan, model)
    assert message.startswith("model.safetensors had ")


def test_another_model_is_named_by_its_architecture(plan: Path) -> None:
    assert messages(plan, load_reference("qwen3").folder) == (
        "is for llama, and the model is qwen3",
    )


@pytest.mark.slow
def test_another_version_and_another_encoder_revision_are_named(
    plan: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bind, "our_version", lambda: "9.9.9")
    (message,) = messages(plan, model)
    assert message.endswith("and this is 9.9.9; make it again")
    monkeypatch.setattr(bind, "ENCODER_REVISION", 99)
    (message,) = messages(plan, model)
    assert "was made for encoder revision" in message


def test_a_missing_and_an_unknown_tensor_are_named(plan: Path, model: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["tensors"][0]["name"] = "no.such"

    name = json.loads(plan.read_text())["tensors"][0]["name"]
    assert messages(edited(plan, rename), model) == (
        "the model does not have no.such",
        f"does not know {name} of the model",
    )


def test_an_edited_type_is_named_with_the_size_it_gives(plan: Path, model: Path) -> None:
    def retype(document: dict[str, Any]) -> None:
        next(t for t in document["tensors"] if t["type"] == "Q8_0")["type"] = "F16"

    first, *_ = messages(edited(plan, retype), model)
    assert "F16 gives" in first
    assert "change the recipe and make the plan again" in first


def test_a_type_whose_blocks_do_not_divide_the_rows_is_named(plan: Path, model: Path) -> None:
    def retype(document: dict[str, Any]) -> None:
        next(t for t in document["tensors"] if t["type"] == "Q8_0")["type"] = "Q4_K"

    (message,) = messages(edited(plan, retype), model)
    assert "Q4_K" in message


def test_an_edited_key_is_named(plan: Path, model: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["keys"]["dynquant.recipe"]["value"] = "other"

    (message,) = messages(edited(plan, rename), model)
    assert message == "key dynquant.recipe does not have the value that its hash says"


def test_an_edited_recipe_is_named(plan: Path, model: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["recipe"]["text"] += "# more"

    (message,) = messages(edited(plan, change), model)
    assert "does not have the sha256" in message


DOWN = "blk.0.ffn_down.weight"


@pytest.mark.slow
def test_another_imatrix_than_that_of_the_plan_is_refused(model: Path, tmp_path: Path) -> None:
    n = dynquant.load_model(model).tensors
    width = next(t for t in n if t.name == DOWN).n_per_row
    files = [
        write_counted(tmp_path / str(i), {DOWN: (np.full((1, width), i + 1, np.float32), [1])})
        for i in range(2)
    ]
    path = tmp_path / "with.json"
    dynquant.make_plan(model, "q8_0", imatrix=files[0]).save(path)
    assert dynquant.load_plan(path, model, imatrix=files[0]).imatrix
    assert messages(path, model)[0].startswith("needs the imatrix 0, sha256 ")
    assert str(files[1]) in messages(path, model, imatrix=files[1])[0]
    dynquant.make_plan(model, "q8_0").save(tmp_path / "without.json")
    (message,) = messages(tmp_path / "without.json", model, imatrix=files[0])
    assert message == f"was made without an imatrix; leave out {files[0]}"


# The document


def test_schema_accepts_a_written_plan(plan: Path) -> None:
    Draft202012Validator(plan_schema()).validate(json.loads(plan.read_text()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "not a plan of dynquant; it has no 'plan'"),
        (b"{", "not JSON: "),
        (b'{"plan": 2}', "is a plan of version 2; this dynquant reads version 1"),
        (b'{"plan": 1}', "'dynquant' is missing"),
    ],
)
def test_a_file_that_is_not_a_plan_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(PlanError) as e:
        parse_plan(content, "p.json")
    assert e.value.messages[0].startswith(f"p.json: {message}")


def test_contradictions_are_refused(plan: Path, model: Path) -> None:
    def double(document: dict[str, Any]) -> None:
        document["tensors"].append(document["tensors"][-1])

    (message,) = messages(edited(plan, double), model)
    assert "is listed 2 times" in message
    assert "tensor_bytes is" in message


def test_saved_plan_contains_no_path_of_the_machine(plan: Path, tmp_path: Path) -> None:
    assert str(tmp_path) not in plan.read_text()
    assert saved.VERSION == 1
