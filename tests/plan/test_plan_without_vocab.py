"""A plan needs only headers and config.json; a file also needs a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from agreement import load_reference

import dynquant
from dynquant.cli.plan import plan as plan_command
from dynquant.conversion.write import convert_plan
from dynquant.errors import NoVocabError, PlanError, VocabError
from dynquant.report.documents import plan_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's config.json and weights, nothing else."""
    made = tmp_path / "model"
    made.mkdir()
    source = load_reference("qwen3moe").folder
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, made)
    return made


@pytest.mark.slow
def test_the_plan_has_the_tensors_of_the_whole_model(folder: Path) -> None:
    recipe = dynquant.load_recipe("dynamic-4bit")
    bare = dynquant.make_plan(dynquant.load_model(folder, needs_vocab=False), recipe)
    whole = dynquant.make_plan(dynquant.load_model(load_reference("qwen3moe").folder), recipe)
    assert bare.tensors == whole.tensors
    assert set(whole.keys) - set(bare.keys) == {k for k in whole.keys if k.startswith("tokenizer.")}
    assert (len(bare.missing), whole.missing) == (1, ())


def test_model_without_a_tokenizer_is_refused_by_default(folder: Path) -> None:
    with pytest.raises(NoVocabError, match=r"model: no tokenizer; put tokenizer\.json"):
        dynquant.load_model(folder)


def test_plan_without_a_tokenizer_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    model = dynquant.load_model(folder, needs_vocab=False)
    plan = dynquant.make_plan(model, dynquant.load_recipe("q8_0"))
    with pytest.raises(PlanError, match="model: no tokenizer"):
        convert_plan(plan, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_tokenizer_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(VocabError, match=r"tokenizer\.json"):
        dynquant.load_model(folder, needs_vocab=False)


def test_json_lists_missing_parts(folder: Path) -> None:
    model = dynquant.load_model(folder, needs_vocab=False)
    plan = dynquant.make_plan(model, dynquant.load_recipe("q8_0"))
    assert json.loads(json.dumps(plan_json(plan)))["lacks"] == list(model.missing)


def test_command_states_that_the_size_is_unknown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_command(str(folder), "q8_0")
    printed = capsys.readouterr()
    assert "file    size unknown" in printed.out
    assert "no tokenizer" in printed.err
    plan_command(str(folder), "q8_0", json=True)
    assert json.loads(capsys.readouterr().out)["file_bytes"] is None
