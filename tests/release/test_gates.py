"""Gates, the JSON log and the job summary of `convert` and `plan`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from handmade import names
from handmade_manifests import write_manifest
from inprocess import Done, run
from places import TINY_BOOKS

from dynquant.conversion.gates import Gate, check_gate, error_gate, size_gate
from dynquant.conversion.losses import Loss
from dynquant.errors import GateError
from dynquant.release.finished import open_finished
from dynquant.release.job_summary import add_summary, summary_of

MODEL = TINY_BOOKS


def events(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.err.splitlines()]


def test_size_equal_to_the_limit_passes_and_one_byte_more_fails() -> None:
    assert size_gate(1000, 1000).holds
    assert not size_gate(1001, 1000).holds


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_plan_over_the_limit_exits_with_3_before_writing(command: str, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "x.gguf") if command == "convert" else ()
    done = run(command, MODEL, *out, "-r", "q8_0", "--max-size", "3MB")
    assert done.code == 3
    assert done.err.startswith("error: ")
    assert "size is 3.97 MB (3.79 MiB), the limit is 3.00 MB (2.86 MiB)" in done.err
    assert names(tmp_path) == []


@pytest.mark.slow
def test_plan_within_the_limit_exits_with_0() -> None:
    assert run("plan", MODEL, "-r", "q8_0", "--max-size", "4MB").code == 0


@pytest.mark.slow
def test_limit_that_is_not_a_size_is_wrong_usage() -> None:
    assert run("plan", MODEL, "-r", "q8_0", "--max-size", "much").code == 2


@pytest.fixture(scope="module")
def without_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with x.gguf, which was converted without a manifest."""
    folder = tmp_path_factory.mktemp("without")
    out = folder / "x.gguf"
    assert run("convert", MODEL, "-o", out, "-r", "q8_0", "--no-manifest").code == 0
    return folder


@pytest.mark.slow
def test_error_gate_fails_if_no_errors_are_recorded(without_manifest: Path) -> None:
    assert not error_gate(open_finished(without_manifest / "x.gguf").loss, 1.0).holds


@pytest.mark.slow
def test_error_is_the_mean_by_number_of_weights(without_manifest: Path, tmp_path: Path) -> None:
    out = Path(shutil.copy(without_manifest / "x.gguf", tmp_path))
    one, two, *_ = (t for t in open_finished(out).tensors if len(t.shape) == 2)
    assert one.n_weights != two.n_weights
    write_manifest(out, "q8_0", errors={one.name: 0.01, two.name: 0.04})
    mean = (one.n_weights * 0.01 + two.n_weights * 0.04) / (one.n_weights + two.n_weights)
    loss = open_finished(out).loss
    assert loss
    assert loss.weighted == pytest.approx(mean)


def test_error_equal_to_the_limit_passes_and_a_larger_one_fails() -> None:
    loss = Loss(weighted=0.02, one_minus_cos2=0.01, max=0.25, n_weights=7)
    assert error_gate(loss, 0.02).holds
    assert not error_gate(loss, 0.01999).holds


def test_failed_gate_raises_gate_error() -> None:
    gate = Gate("size", "1", "2", holds=False)
    with pytest.raises(GateError, match="x: size is 2, the limit is 1; take less"):
        check_gate(gate, "x", "take less")


@pytest.mark.slow
def test_conversion_with_too_large_an_error_is_complete_and_exits_with_3(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    done = run("convert", MODEL, "-o", out, "-r", "q8_0", "--max-error", "0")
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith(f"error: {out}: error is ")
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.slow
def test_conversion_records_its_errors(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    assert run("convert", MODEL, "-o", out, "-r", "q8_0").code == 0
    loss = open_finished(out).loss
    assert loss is not None
    assert 0 < loss.weighted < 1e-4  # Q8_0 has 8 bits


@pytest.mark.slow
def test_conversion_within_the_error_limit_exits_with_0(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    assert run("convert", MODEL, "-o", out, "-r", "q8_0", "--max-error", "1e-4").code == 0


@pytest.mark.slow
def test_every_line_of_the_json_log_is_an_event(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    done = run("convert", MODEL, "-o", out, "-r", "q8_0", "--log-format", "json", "--threads", "1")
    assert (done.code, done.out) == (0, "")
    found = events(done)
    assert [e["event"] for e in found] == ["start", "progress", "progress", "done"]
    assert [e["seconds"] for e in found] == sorted(e["seconds"] for e in found)
    start, _, progress, end = found
    assert (start["command"], start["recipe"], start["out"]) == ("convert", "q8_0", str(out))
    assert progress["file"] == "x.gguf"
    assert progress["bytes"] == progress["total_bytes"]
    assert progress["weights"] == progress["total_weights"]
    assert end["bytes"] == out.stat().st_size
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    assert end["files"] == [{"name": "x.gguf", "bytes": end["bytes"], "sha256": sha256}]


@pytest.mark.slow
def test_warnings_and_errors_are_events_too(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("for: [gemma]\ndefault: Q8_0\n")
    done = run("plan", MODEL, "-r", recipe, "--log-format", "json", "--max-size", "1MB")
    assert done.code == 3
    found = events(done)
    assert [e["event"] for e in found] == ["start", "warning", "done", "error"]
    assert found[2]["file_bytes"] > 1_000_000
    assert found[1]["message"].startswith(f"{recipe}: is meant for gemma")


@pytest.mark.slow
def test_two_conversions_share_one_summary(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    options = ("-r", "q8_0", "--summary", summary)
    made = run("convert", MODEL, "-o", tmp_path / "a|b.gguf", *options, "--max-size", "5MB")
    assert made.code == 0
    refused = run("convert", MODEL, "-o", tmp_path / "y.gguf", *options, "--max-size", "1MB")
    assert refused.code == 3
    lines = summary.read_text().splitlines()
    assert [line for line in lines if line.startswith("## ")] == [
        "## a\\|b",
        "## y.gguf: not written",
    ]
    gates = [line for line in lines if line.startswith("| size")]
    assert [line.rsplit("| ")[-1] for line in gates] == ["passed |", "**failed** |"]
    assert hashlib.sha256((tmp_path / "a|b.gguf").read_bytes()).hexdigest() in summary.read_text()


@pytest.mark.slow
def test_summary_shows_the_errors_of_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    run("convert", MODEL, "-o", out, "-r", "q8_0")
    write_manifest(out, "q8_0", errors=0.0123)
    made = open_finished(out)
    add_summary(tmp_path / "s.md", summary_of(made, made.sha256(), [error_gate(made.loss, 0.01)]))
    text = (tmp_path / "s.md").read_text()
    assert "| error | 0.01 | 0.0123 | **failed** |" in text
    assert "| `ffn_down` | Q8_0 |" in text


@pytest.mark.slow
def test_summary_is_written_only_if_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert run("convert", MODEL, "-o", tmp_path / "x.gguf", "-r", "q8_0", "-q") == (0, "", "")
    assert not (tmp_path / "summary.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "code"), [("1e-9", 3), ("1", 0)])
def test_the_error_limit_needs_no_manifest(tmp_path: Path, limit: str, code: int) -> None:
    out = tmp_path / "x.gguf"
    options = ("-r", "q8_0", "--no-manifest", "--max-error", limit)
    assert run("convert", MODEL, "-o", out, *options).code == code
    assert names(tmp_path) == ["x.gguf"]


@pytest.mark.slow
def test_a_file_that_keeps_all_weights_has_no_error(tmp_path: Path) -> None:
    options = ("-r", "f32", "--max-error", "0")
    assert run("convert", MODEL, "-o", tmp_path / "x.gguf", *options).code == 0


@pytest.mark.slow
def test_the_summary_without_a_manifest_has_the_errors_that_were_measured(tmp_path: Path) -> None:
    summary = tmp_path / "s.md"
    options = ("-r", "q8_0", "--no-manifest", "--summary", summary)
    assert run("convert", MODEL, "-o", tmp_path / "x.gguf", *options).code == 0
    lines = summary.read_text().splitlines()
    row = next(line for line in lines if line.startswith("| `x.gguf`"))
    assert float(row.split("|")[-2]) > 0
