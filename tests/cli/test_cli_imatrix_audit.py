"""`dynquant imatrix audit` prints problems first, as table, JSON or page; errors are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imatrices import write_counted, write_legacy
from inprocess import run
from pages import read_page
from places import TESTS

import dynquant

MODEL = TESTS / "references" / "qwen3moe"
HOSTILE = "<script>alert(1)</script>.txt"


def entries(n_more: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tensor in dynquant.load_model(MODEL).tensors:
        if len(tensor.shape) > 1 and tensor.parts.layer is not None:
            counts = [300, 0, 20, 500, 700] if len(tensor.shape) == 3 else [240]
            sums = np.random.default_rng(1).chisquare(3, (len(counts), tensor.n_per_row + n_more))
            found[tensor.name] = sums.astype(np.float32), counts
    return found


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "i.gguf"
    return write_counted(path, entries(), imatrix_datasets=[HOSTILE])


def test_problems_come_before_the_table(imatrix: Path) -> None:
    done = run("imatrix", "audit", imatrix, MODEL)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("problem: no importance for 4 of 20 experts in blk.{0-1}.ffn_")
    assert lines[0].endswith("they have the mean of their layer")
    assert lines[1].startswith("problem: no importance for 2 of 10 experts in blk.{0-1}.ffn_down")
    assert lines[1].endswith("their channels are weighted equally")
    assert lines[2].startswith("problem: fewer than 100 tokens for 6 of 30 matrices")
    (row,) = [line for line in lines if line.startswith("ffn_up_exps")]
    assert row.split()[1:9] == ["0-1", "8", "of", "10", "0", "/", "300", "/"]
    assert row.endswith("76.2%  mixed")
    assert "in common, which counts as 64 tokens; without: the layer's mean" in done.out


def test_a_recipe_gives_the_policy(imatrix: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("default: Q4_0\nimportance: {shrink: 0, unseen: uniform}")
    done = run("imatrix", "audit", imatrix, MODEL, "-r", path, "--json")
    document = json.loads(done.out)
    assert document["policy"] == {"shrink": 0, "unseen": "uniform"}
    uses = {t["name"]: t["use"] for t in document["tensors"]}
    assert uses["blk.0.ffn_up_exps.weight"] == (
        "as it is; experts without data are weighted equally"
    )


def test_each_tensor_may_have_a_line(imatrix: Path) -> None:
    done = run("imatrix", "audit", imatrix, MODEL, "--tensors")
    for tensor in dynquant.load_model(MODEL).tensors:
        listed = any(line.split()[:1] == [tensor.name] for line in done.out.splitlines())
        assert listed == (len(tensor.shape) > 1 and "gate_inp" not in tensor.name), tensor.name


def test_the_page_loads_nothing_and_escapes_names(imatrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    assert run("imatrix", "audit", imatrix, MODEL, "--html", out).code == 0
    page = read_page(out.read_text("utf-8"))
    assert not page.all("script")
    assert not [e for e in page.all("link") + page.all("img") if e]
    assert any(HOSTILE in cell.text for cell in page.all("td"))
    assert len(page.all("li")) == 3
    refused = run("imatrix", "audit", imatrix, MODEL, "--html", out)
    assert refused.code == 1
    assert "exists; replace it with --force" in refused.err
    assert run("imatrix", "audit", imatrix, MODEL, "--html", out, "--force").code == 0


def test_the_page_is_the_same_for_the_same_file(imatrix: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        run("imatrix", "audit", imatrix, MODEL, "--html", tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_older_format_is_audited(tmp_path: Path) -> None:
    means = {name: sums / 3 for name, (sums, _) in entries().items()}
    done = run("imatrix", "audit", write_legacy(tmp_path / "x.dat", means), MODEL)
    assert done.code == 0
    assert "older format (.dat)" in done.out
    assert "problem: no counts of the tokens of each expert" in done.out


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def not_a_number(path: Path) -> None:
    content = path.read_bytes()
    value = entries()["blk.0.attn_q.weight"][0][0, 3].tobytes()
    path.write_bytes(content.replace(value, np.float32(np.nan).tobytes()))


def other(path: Path) -> None:
    write_counted(path, entries(n_more=1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "truncated: 40 bytes of the data are missing"),
        (not_a_number, "values that are not finite"),
        (other, "is the imatrix of another model"),
    ],
)
def test_a_damaged_file_is_one_error(
    imatrix: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(imatrix.read_bytes())
    damage(path)
    done = run("imatrix", "audit", path, MODEL)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {path}: ")
    assert message in done.err


def test_all_wrong_inputs_are_reported_together(tmp_path: Path) -> None:
    done = run("imatrix", "audit", tmp_path / "i", tmp_path / "m", "-r", "nope")
    assert done.code == 1
    assert len(done.err.splitlines()) == 3
