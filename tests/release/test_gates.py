"""Gates, the JSON log and the job summary of `convert` and `plan`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from handmade import names
from handmade_manifests import write_manifest
from inprocess import Done, run
from places import TINY_BOOKS

from dynquant.conversion.gates import Gate, check_gate, error_gate, size_gate
from dynquant.errors import GateError
from dynquant.release.finished import open_finished
from dynquant.release.job_summary import add_summary, summary_of

MODEL = TINY_BOOKS


def events(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.err.splitlines()]


def test_a_size_that_is_equal_passes_and_one_byte_more_does_not() -> None:
    assert size_gate(1000, 1000).holds
    assert not size_gate(1001, 1000).holds


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_too_large_a_plan_is_exit_code_3_before_a_byte_is_written(
    command: str, tmp_path: Path
) -> None:
    out = ("-o", tmp_path / "x.gguf") if command == "convert" else ()
    done = run(command, MODEL, *out, "-r", "q8_0", "--max-size", "3MB")
    assert done.code == 3
    assert done.err.startswith("error: ")
    assert "size is 3.97 MB (3.79 MiB), the limit is 3.00 MB (2.86 MiB)" in done.err
    assert names(tmp_path) == []


def test_a_plan_within_the_limit_is_exit_code_0() -> None:
    assert run("plan", MODEL, "-r", "q8_0", "--max-size", "4MB").code == 0


def test_a_limit_that_is_no_size_is_wrong_usage() -> None:
    assert run("plan", MODEL, "-r", "q8_0", "--max-size", "much").code == 2


def test_the_error_gate_weighs_tensors_by_their_weights(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    assert run("convert", MODEL, "-o", out, "-r", "q8_0").code == 0
    (tmp_path / "x.gguf.manifest.json").unlink(missing_ok=True)
    assert not error_gate(open_finished(out).loss, 1.0).holds
    made = open_finished(out)
    one, two, *_ = (t for t in made.tensors if len(t.shape) == 2)
    write_manifest(out, "q8_0", errors={one.name: 0.01, two.name: 0.04})
    mean = (one.n_weights * 0.01 + two.n_weights * 0.04) / (one.n_weights + two.n_weights)
    loss = open_finished(out).loss
    assert loss
    assert loss.weighted == pytest.approx(mean)
    assert error_gate(loss, loss.weighted).holds
    assert not error_gate(loss, loss.weighted * 0.999).holds


def test_a_gate_that_does_not_hold_is_an_error_of_its_kind() -> None:
    gate = Gate("size", "1", "2", holds=False)
    with pytest.raises(GateError, match="x: size is 2, the limit is 1; take less"):
        check_gate(gate, "x", "take less")


def test_a_conversion_that_loses_too_much_is_complete_and_exit_code_3(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    done = run("convert", MODEL, "-o", out, "-r", "q8_0", "--max-error", "0")
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith(f"error: {out}: error is ")
    assert out.read_bytes()[:4] == b"GGUF"
    passing = run("convert", MODEL, "-o", out, "-r", "q8_0", "--max-error", "1", "--force")
    if open_finished(out).loss is None:
        pytest.skip("this conversion measures no errors")
    assert passing.code == 0


def test_every_line_of_the_json_log_is_an_event(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    done = run("convert", MODEL, "-o", out, "-r", "q8_0", "--log-format", "json", "--threads", "1")
    assert (done.code, done.out) == (0, "")
    found = events(done)
    assert [e["event"] for e in found] == ["start", "progress", "progress", "done"]
    assert [e["seconds"] for e in found] == sorted(e["seconds"] for e in found)
    start, _, progress, end = found
    assert (start["command"], start["recipe"], start["out"]) == ("convert", "q8_0", str(out))
    assert progress["bytes"] == progress["total_bytes"]
    assert progress["weights"] == progress["total_weights"]
    assert end["bytes"] == out.stat().st_size
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    assert end["files"] == [{"name": "x.gguf", "bytes": end["bytes"], "sha256": sha256}]


def test_warnings_and_errors_are_events_too(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("for: [gemma]\ndefault: Q8_0\n")
    done = run("plan", MODEL, "-r", recipe, "--log-format", "json", "--max-size", "1MB")
    assert done.code == 3
    found = events(done)
    assert [e["event"] for e in found] == ["start", "warning", "done", "error"]
    assert found[2]["file_bytes"] > 1_000_000
    assert found[1]["message"].startswith(f"{recipe}: is meant for gemma")


def test_two_jobs_have_one_summary(tmp_path: Path) -> None:
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
    assert [line.rsplit("| ")[-1] for line in gates] == ["holds |", "**does not hold** |"]
    assert hashlib.sha256((tmp_path / "a|b.gguf").read_bytes()).hexdigest() in summary.read_text()


def test_a_summary_tells_the_errors_of_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    run("convert", MODEL, "-o", out, "-r", "q8_0")
    write_manifest(out, "q8_0", errors=0.0123)
    made = open_finished(out)
    add_summary(tmp_path / "s.md", summary_of(made, made.sha256(), [error_gate(made.loss, 0.01)]))
    text = (tmp_path / "s.md").read_text()
    assert "| error | 0.01 | 0.0123 | **does not hold** |" in text
    assert "| `ffn_down` | Q8_0 |" in text


def test_a_summary_is_written_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert run("convert", MODEL, "-o", tmp_path / "x.gguf", "-r", "q8_0", "-q") == (0, "", "")
    assert not (tmp_path / "summary.md").exists()
