"""README tells the truth: its commands and examples run, and none of ours is left out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from dynquant.cli import app

README = (ROOT / "README.md").read_text()
OURS = ("dynquant ", "python scripts/")
COMMANDS = [
    command.strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    for command in line.partition("#")[0].split("&&")
]


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


BAD = """\
dynquant: 1
default: q4km
rules:
  - role: ffn_dwon
    layers: 9-3
    type: Q6_K
falback: F16
"""
"""The recipe whose faults the page shows."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder from which README's paths lead where they should, and outputs go nowhere else.

    Its recipes are there under the names that their first lines tell.
    """
    for folder in ("tests", "scripts"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for recipe in code("yaml"):
        name = recipe.splitlines()[0].removeprefix("# ")
        assert name.endswith(".yaml")
        (tmp_path / name).write_text(recipe)
    (tmp_path / "bad.yaml").write_text(BAD)
    return tmp_path


def run(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    program, *words = shlex.split(command)
    # A script's own redirection, which needs no shell.
    out = words.pop() if words[-2:-1] == [">"] else None
    if out:
        words.pop()
    module = ["-m", "dynquant.cli"] if program == "dynquant" else []
    done = subprocess.run(
        [sys.executable, *module, *words], cwd=checkout, capture_output=True, text=True
    )
    if out:
        (checkout / out).write_text(done.stdout)
    return done


@pytest.mark.slow
def test_every_command_of_ours_runs_in_the_order_of_the_page(checkout: Path) -> None:
    ours = [c for c in COMMANDS if c.startswith(OURS)]
    assert len(ours) > 20
    for command in ours:
        done = run(command, checkout)
        assert done.returncode == 0, (command, done.stderr)
    assert (checkout / "tiny-books.gguf").stat().st_size > 1_000_000


@pytest.mark.slow
def test_the_errors_shown_are_those_that_are_told(checkout: Path) -> None:
    shown = re.findall(r"^error: (\w+\.yaml):.*$", README, re.MULTILINE)
    assert set(shown) == {"bad.yaml", "second.yaml"}
    for name in sorted(set(shown)):
        done = run(f"dynquant recipe check {name} tests/data/tiny-books", checkout)
        expected = re.findall(rf"^error: {name}:.*\n", README, re.MULTILINE)
        assert (done.returncode, done.stderr) == (1, "".join(expected))


def test_every_other_command_is_run_by_the_gate() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    others = {c for c in COMMANDS if not c.startswith(OURS)}
    assert len(others) > 3
    assert {c for c in others if c not in gate} == set()


@pytest.mark.slow
def test_python_examples_run(checkout: Path) -> None:
    (example,) = code("python")
    subprocess.run([sys.executable, "-c", example], cwd=checkout, check=True, capture_output=True)
    assert (checkout / "tiny-books.gguf").exists()


PROGRAM = get_command(app)
COMMAND_NAMES = [
    [name, *more]
    for name, command in PROGRAM.commands.items()
    for more in ([[sub] for sub in getattr(command, "commands", ())] or [[]])
]


def options(name: list[str]) -> set[str]:
    shown = CliRunner().invoke(app, [*name, "--help"]).output
    return set(re.findall(r"(--[a-z][a-z-]+)", shown)) - {"--help"}


def test_every_command_is_in_the_page() -> None:
    assert len(COMMAND_NAMES) > 8
    for name in COMMAND_NAMES:
        assert re.search(rf"^dynquant {' '.join(name)}\b", README, re.MULTILINE), name


def test_every_option_of_convert_is_in_the_page_and_all_that_are_exist() -> None:
    listed = set(re.findall(r"`(--[a-z-]+)", README)) | {"--out", "--recipe"}
    assert options(["convert"]) <= listed
    assert listed <= set().union(*map(options, COMMAND_NAMES))
