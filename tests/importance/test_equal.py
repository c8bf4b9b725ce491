"""An imatrix of equal weights satisfies types that require one, and is named as what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inprocess import run
from places import REFERENCES, TINY_BOOKS

import dynquant
from dynquant.checkpoint.gguf import read_gguf
from dynquant.importance.equal import DATASET, write_equal
from dynquant.importance.imatrix import read_imatrix


@pytest.mark.parametrize("family", ["qwen3moe", "deepseek-v3", "falcon-mamba"])
def test_all_matrices_have_ones(family: str, tmp_path: Path) -> None:
    out = tmp_path / "equal.gguf"
    model = dynquant.load_model(REFERENCES / family)
    write_equal(model, out)
    entries = read_imatrix(out).entries
    matrices = {t.name: t.n_per_row for t in model.tensors if len(t.shape) > 1}
    assert {name for name in matrices if name.endswith(".weight")} == entries.keys()
    for name, entry in entries.items():
        assert entry.means().tolist() == [[1.0] * matrices[name]]


def test_plan_manifest_and_file_name_it(tmp_path: Path) -> None:
    imatrix, out = tmp_path / "equal.gguf", tmp_path / "out.gguf"
    done = run("imatrix", "equal", TINY_BOOKS, "-o", imatrix)
    assert (done.code, done.out) == (0, "")
    assert "all channels are weighted equally" in done.err
    more = "-r", "dynamic-2bit", "--imatrix", imatrix
    assert DATASET in run("plan", TINY_BOOKS, *more).out
    assert run("convert", TINY_BOOKS, "-o", out, *more).code == 0
    assert read_gguf(out).keys["quantize.imatrix.dataset"].value == DATASET
    manifest = json.loads(Path(f"{out}.manifest.json").read_text())
    assert manifest["importance"]["datasets"] == [DATASET]


def test_the_audit_says_so(tmp_path: Path) -> None:
    imatrix = tmp_path / "equal.gguf"
    model = REFERENCES / "qwen3moe"
    write_equal(dynquant.load_model(model), imatrix)
    assert dynquant.audit_imatrix(imatrix, model).problems[0] == DATASET


def test_the_blocks_are_those_of_no_imatrix(tmp_path: Path) -> None:
    imatrix = tmp_path / "equal.gguf"
    write_equal(dynquant.load_model(TINY_BOOKS), imatrix)
    files: list[bytes] = []
    for name, given in (("a", imatrix), ("b", None)):
        out = tmp_path / f"{name}.gguf"
        dynquant.convert(TINY_BOOKS, out, recipe="dynamic-4bit", imatrix=given)
        header = read_gguf(out)
        files.append(out.read_bytes()[header.data_offset :])
    assert files[0] == files[1]


def test_wrong_input_is_refused_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    done = run("imatrix", "equal", tmp_path / "none", "-o", out)
    assert done.code == 1
    assert "none: does not exist" in done.err
    assert "out.gguf: exists; replace it with --force" in done.err
    assert out.read_bytes() == b"mine"
