"""A run resumes only if all inputs that determine the output are unchanged; changes are named."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of, tensors_of, write_checkpoint
from handmade import recipe
from imatrices import write_counted

from dynquant.arch.load import load_model
from dynquant.conversion import identity
from dynquant.conversion.identity import identity_of
from dynquant.conversion.journal import changed
from dynquant.conversion.work import work_of
from dynquant.importance.imatrix import read_imatrix
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.shards import Split
from dynquant.quants import ENCODER_REVISION

ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DOWN = "blk.0.ffn_down.weight"


def written(folder: Path, factor: float = 8.0) -> Path:
    """Write a small Llama; only computed weights depend on the factor, no shard and no key does."""
    folder.mkdir(exist_ok=True)
    scaling = ROPE | {"factor": factor, "original_max_position_embeddings": 64}
    config = config_of("LlamaForCausalLM", rope_scaling=scaling, intermediate_size=32)
    return write_checkpoint(folder, config, tensors_of(config))


def imatrix(path: Path, value: float = 1.0) -> Any:
    return read_imatrix(write_counted(path, {DOWN: (np.full((1, 32), value, np.float32), [1])}))


def planned(folder: Path, **options: Any) -> Plan:
    rules = options.pop("rules", "Q4_0")
    return make_plan(
        load_model(folder, needs_vocab=False), recipe("F16", rules_of(rules)), **options
    )


def rules_of(type_name: str) -> str:
    return f"rules: [{{role: ffn_down, type: {type_name}}}]"


def found(plan: Plan) -> dict[str, Any]:
    return identity_of(plan, work_of(plan))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "model")


CHANGES: dict[str, dict[str, Any]] = {
    "recipe": {"rules": "Q8_0"},
    "effort": {"effort": "best"},
    "shards": {"split": Split(max_tensors=5)},
    "plan": {"set_keys": {"general.name": "Another"}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_option_is_named(folder: Path, what: str) -> None:
    changes = changed(found(planned(folder)), found(planned(folder, **CHANGES[what])))
    assert [c for c in changes if c.startswith(f"{what} was ")]


def test_unchanged_inputs_give_no_changes(folder: Path) -> None:
    assert changed(found(planned(folder)), found(planned(folder))) == []


def test_changed_imatrix_is_named_and_its_path_is_ignored(folder: Path, tmp_path: Path) -> None:
    one = found(planned(folder, imatrix=imatrix(tmp_path / "a")))
    moved = imatrix(tmp_path / "a")
    other = found(planned(folder, imatrix=imatrix(tmp_path / "a", 2.0)))
    assert one["imatrix"] == moved.sha256
    assert any(t.startswith("imatrix was ") for t in changed(one, other))
    assert any(
        t.startswith("imatrix was absent and is ") for t in changed(found(planned(folder)), one)
    )


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def other_header(path: Path) -> None:
    there = path.stat()
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"F32"', b'"I32"', 1))
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))


def later(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "what"), [(longer, "bytes"), (other_header, "header"), (later, "modified")]
)
def test_changed_source_is_named(folder: Path, change: Callable[[Path], None], what: str) -> None:
    plan = planned(folder)
    before = found(plan)
    change(folder / "model.safetensors")
    changes = changed(before, found(plan))
    assert [c for c in changes if c.startswith(f"source: model.safetensors: {what} was ")]


def test_changed_settings_that_affect_only_weights_are_named(folder: Path) -> None:
    before = found(planned(folder))
    after = found(planned(written(folder, 32.0)))
    changes = changed({**before, "source": {}}, {**after, "source": {}})
    assert before["plan"] == after["plan"]
    assert [c.split(" was ")[0] for c in changes] == ["computed", "config: config.json"]


def test_changed_version_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = found(planned(folder))
    monkeypatch.setattr(identity, "our_version", lambda: "9.9.9")
    ours = metadata.version("dynquant-gguf")
    assert changed(before, found(planned(folder))) == [f"dynquant version was {ours} and is 9.9.9"]


def test_moved_model_is_unchanged(folder: Path, tmp_path: Path) -> None:
    before = found(planned(folder))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # A model without a name has the name of its folder.
    assert changed(before, found(planned(folder.rename(elsewhere / folder.name)))) == []


def test_changed_encoder_revision_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = found(planned(folder))
    monkeypatch.setattr(identity, "ENCODER_REVISION", 99)
    assert changed(before, found(planned(folder))) == [
        f"encoder revision was {ENCODER_REVISION} and is 99"
    ]
