"""README tells the truth: its commands and examples run, and none of ours is left out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynquant.arch.load import load_model
from dynquant.cli import app
from dynquant.plan.plan import make_plan
from dynquant.recipe.language import load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    command.strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    for command in line.partition("#")[0].split("&&")
]


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder from which README's paths lead where they should, and outputs go nowhere else."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    return tmp_path


def test_every_dynquant_command_runs_in_the_order_of_the_page(checkout: Path) -> None:
    ours = [shlex.split(c) for c in COMMANDS if c.startswith("dynquant ")]
    assert len(ours) > 5
    for command in ours:
        done = subprocess.run(
            [sys.executable, "-m", "dynquant.cli", *command[1:]],
            cwd=checkout,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (checkout / "tiny-books.gguf").stat().st_size > 1_000_000


def test_every_other_command_is_run_by_the_gate() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    others = {c for c in COMMANDS if not c.startswith("dynquant ")}
    assert len(others) > 3
    assert {c for c in others if c not in gate} == set()


def test_python_examples_run(checkout: Path) -> None:
    (example,) = code("python")
    subprocess.run([sys.executable, "-c", example], cwd=checkout, check=True, capture_output=True)
    assert (checkout / "tiny-books.gguf").exists()


def test_the_recipe_example_applies_to_the_model(tmp_path: Path) -> None:
    (example,) = code("yaml")
    path = tmp_path / "small.yaml"
    path.write_text(example)
    plan = make_plan(load_model(ROOT / "tests" / "data" / "tiny-books"), load_recipe(path))
    assert {name for name, count in plan.type_counts.items() if count} >= {"Q4_K", "Q5_K", "Q6_K"}


def test_every_command_is_in_the_page() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert names
    for name in names:
        assert re.search(rf"^dynquant {name}\b", README, re.MULTILINE), name


def test_every_option_of_convert_is_in_the_page_and_exists() -> None:
    listed = set(re.findall(r"`(--[a-z-]+)", README)) | {"--out", "--recipe"}
    shown = CliRunner().invoke(app, ["convert", "--help"]).output
    existing = set(re.findall(r"(--[a-z][a-z-]+)", shown)) - {"--help"}
    assert existing <= listed
    of_other_commands = {"--json"}
    assert listed <= existing | of_other_commands
