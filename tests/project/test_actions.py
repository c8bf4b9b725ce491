"""The GitHub Action and the workflows: their commands exist, and the steps of the example run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from dynquant.cli import app

GITHUB = ROOT / ".github"
ACTION = GITHUB / "actions" / "dynquant-convert" / "action.yml"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
EXAMPLE = GITHUB / "workflows" / "example-release.yml"
SCRIPT = ROOT / "scripts" / "checks" / "run_example_release.py"
COMMANDS = set(get_command(app).commands)  # type: ignore[attr-defined]


@cache
def read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), yaml.BaseLoader)  # `on` stays a string


def steps_of(path: Path) -> list[dict[str, Any]]:
    document = read(path)
    if "runs" in document:
        return document["runs"]["steps"]
    return [step for job in document["jobs"].values() for step in job["steps"]]


STEPS = [(path, step) for path in (ACTION, *WORKFLOWS) for step in steps_of(path)]
STEP_IDS = [f"{path.stem}: {step['name']}" for path, step in STEPS]
SCRIPTS = [step["run"] for _, step in STEPS if "run" in step]


@pytest.mark.parametrize("step", [s for _, s in STEPS], ids=STEP_IDS)
def test_step_runs_a_script_or_uses_a_pinned_action(step: dict[str, Any]) -> None:
    assert ("run" in step) != ("uses" in step)
    if "run" in step:
        assert step["shell"] == "bash"
        return
    where, _, version = step["uses"].partition("@")
    if where.startswith("./"):
        assert (ROOT / where / "action.yml").is_file()
    else:
        assert re.fullmatch(r"v\d+(\.\d+)?|release/v\d+", version), step["uses"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_get_inputs_as_variables_only(script: str) -> None:
    assert "${{" not in script


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_parses_every_script(script: str) -> None:
    subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.mark.parametrize(("path", "step"), STEPS, ids=STEP_IDS)
def test_variables_come_from_existing_inputs_and_outputs(path: Path, step: dict[str, Any]) -> None:
    document = read(path)
    ids = {s["id"] for s in steps_of(path) if "id" in s}
    used = re.findall(r"\$\{\{ (.+?) \}\}", json.dumps([step.get("env"), step.get("with")]))
    for expression in used:
        kind, name, *rest = expression.split(".")
        if kind == "inputs":
            assert name in document["inputs"]
        elif kind == "steps":
            assert name in ids
            assert rest[0] == "outputs"
        else:
            assert kind in ("matrix", "github")


def test_example_uses_existing_inputs_and_outputs_of_the_action() -> None:
    (step,) = (s for s in steps_of(EXAMPLE) if s.get("uses", "").startswith("./"))
    inputs = read(ACTION)["inputs"]
    assert step["with"].keys() <= inputs.keys()
    assert {n for n, i in inputs.items() if i.get("required") == "true"} <= step["with"].keys()
    outputs = re.findall(r"steps\.convert\.outputs\.([\w-]+)", EXAMPLE.read_text())
    assert set(outputs) <= read(ACTION)["outputs"].keys()


def test_every_input_is_used_and_every_output_is_written() -> None:
    text = ACTION.read_text()
    document = read(ACTION)
    assert {n for n in document["inputs"] if f"inputs.{n} }}}}" not in text} == set()
    (release,) = (s["run"] for s in steps_of(ACTION) if s.get("id") == "release")
    written = set(re.findall(r'print\("([\w-]+)"', release))
    assert written == document["outputs"].keys()


@pytest.mark.slow
def test_dynquant_commands_in_scripts_exist_with_their_options() -> None:
    found: set[str] = set()
    for script in SCRIPTS:
        commands = re.findall(r"^ *dynquant (\w+)", script, re.MULTILINE)
        for command in commands:
            assert command in COMMANDS
            help_ = CliRunner().invoke(app, [command, "--help"]).output
            listed = set(re.findall(r"(?<!\S)(--[a-z][a-z-]+|-[a-z])\b", help_))
            used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", script))
            assert len(set(commands)) > 1 or used <= listed
        found |= set(commands)
    assert found == {"convert", "publish", "release", "verify"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_files_that_scripts_run_are_in_the_checkout(script: str) -> None:
    for word in shlex.split(script.replace("'", ""), comments=True):
        if word.startswith((".ci/", "scripts/", "tests/")):
            assert (ROOT / word).exists(), word


INSTALL = """
python() {{ echo "pip $*" >> log; case "$*" in *--only-binary*) return {status};; esac; }}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "tag", "status", "expected"),
    [
        ("0.2.0", "v0.3.0", 0, ["dynquant-gguf[hub]==0.2.0"]),
        ("", "v0.3.0", 0, ["--only-binary dynquant-gguf dynquant-gguf[hub]==0.3.0"]),
        ("", "v0.3.0", 1, ["dynquant-gguf[hub]==0.3.0", "/action/../../..[hub]"]),
        ("", "v0", 0, ["/action/../../..[hub]"]),
        ("", "main", 0, ["/action/../../..[hub]"]),
    ],
)
def test_action_installs_the_wheel_of_its_release_if_there_is_one(
    version: str, tag: str, status: int, expected: list[str], tmp_path: Path
) -> None:
    (install,) = (s["run"] for s in steps_of(ACTION) if s["name"] == "Install dynquant")
    script = "set -eo pipefail\n" + INSTALL.format(status=status) + install
    variables = {"VERSION": version, "TAG": tag, "GITHUB_ACTION_PATH": "/action"}
    subprocess.run(["bash", "-c", script], check=True, cwd=tmp_path, env=variables)
    installed = (tmp_path / "log").read_text().splitlines()
    assert len(installed) == len(expected)
    assert all(line.endswith(end) for line, end in zip(installed, expected, strict=True))


@pytest.mark.parametrize(
    ("publish", "code", "expected"),
    [
        ("", 0, ""),
        ("true", 0, "secret publish made hf://me/model\n"),
        ("dry-run", 0, "secret publish made hf://me/model --dry-run\n"),
        ("yes", 2, "::error::publish is 'yes'; set it to true or dry-run, or leave it out\n"),
    ],
)
def test_action_publishes_only_where_it_is_asked_to(publish: str, code: int, expected: str) -> None:
    (script,) = (s["run"] for s in steps_of(ACTION) if s["name"] == "Publish")
    variables = {
        "PUBLISH": publish,
        "HUB_TOKEN": "secret",
        "FOLDER": "made",
        "REPOSITORY": "me/model",
        "PATH": os.environ["PATH"],
    }
    stub = 'dynquant() { echo "$HF_TOKEN $*"; }\n'
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", stub + script],
        env=variables,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (code, expected)


def test_ci_runs_the_gate() -> None:
    assert ".ci/run" in [s.get("run") for s in steps_of(GITHUB / "workflows" / "ci.yml")]


def test_only_tags_are_published_and_without_a_password() -> None:
    publish = read(GITHUB / "workflows" / "wheels.yml")["jobs"]["publish"]
    assert "github.ref_type == 'tag'" in publish["if"]
    assert publish["permissions"]["id-token"] == "write"
    assert "secrets." not in (GITHUB / "workflows" / "wheels.yml").read_text()


def script_steps(path: Path, skipped: set[str]) -> list[str]:
    """Return the names of the steps with scripts; a local action is replaced by its steps."""
    found: list[str] = []
    for step in steps_of(path):
        if step.get("uses", "").startswith("./"):
            found += script_steps(ROOT / step["uses"] / "action.yml", skipped)
        elif "run" in step and step["name"] not in skipped:
            found.append(step["name"])
    return found


def example(*options: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "--installed", "--workspace", str(workspace), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_example_runs_the_steps_of_the_workflow(tmp_path: Path) -> None:
    done = example(workspace=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^== ([^:\n]+)$", done.stdout, re.MULTILINE)
    assert steps == [*script_steps(EXAMPLE, {"Install dynquant"}), "Job summary", "Artifacts"]
    listed = set(re.findall(r"^ +[\d,]+  release/(.+)$", done.stdout, re.MULTILINE))
    assert listed == {p.name for p in (tmp_path / "release").iterdir()}
    assert {"README.md", "SHA256SUMS", "plan.html", "tiny-books-dynamic-4bit.gguf"} <= listed
    assert "## tiny-books-dynamic-4bit" in done.stdout


@pytest.mark.slow
def test_failed_gate_ends_the_example_with_exit_code_3(tmp_path: Path) -> None:
    done = example("--with", "max-size=1MB", workspace=tmp_path)
    assert done.returncode == 3
    assert "the limit is 1.00 MB (0.954 MiB)" in done.stderr
    assert not (tmp_path / "release").exists()


def test_action_passes_each_line_of_globs_and_keys(tmp_path: Path) -> None:
    (convert,) = (s for s in steps_of(ACTION) if s["name"] == "Convert")
    script = 'set -eo pipefail\ndynquant() { printf "%s\\n" "$@" > log; }\n' + convert["run"]
    given = {
        "MODEL": "hf://ORG/MODEL",
        "OUT": "out/x.gguf",
        "LEAVE_OUT": "v_head.*\nscore.*\n",
        "SET": "general.name=A name\n",
    }
    variables = {**dict.fromkeys(convert["env"], ""), "GITHUB_STEP_SUMMARY": "summary", **given}
    variables["PATH"] = os.environ["PATH"]
    subprocess.run(["bash", "-c", script], check=True, cwd=tmp_path, env=variables)
    written = (tmp_path / "log").read_text().splitlines()
    for option in (
        ("--leave-out", "v_head.*"),
        ("--leave-out", "score.*"),
        ("--set", "general.name=A name"),
    ):
        assert option in pairwise(written)
    assert written[:2] == ["convert", "hf://ORG/MODEL"]
