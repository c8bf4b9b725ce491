"""The documentation is correct: its commands, examples and shown outputs are run as they stand.

Each page runs in a scratch folder, from the top to the bottom:

    ```yaml      is written to the file that its first line names; without a name it is parsed
    ```sh        its commands run and succeed; a comment `# exit code 3` states another exit code
    ```console   a command after `$ ` runs and prints the lines below it; `...` stands for any text
    ```python    runs

Only dynquant and the scripts of this repository run here; any other command of an ```sh block must
be a step of the gate. Other commands (`$ llama-cli`), indented blocks and ```text do not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from places import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from dynquant.cli import app

README = ROOT / "README.md"
PAGES = sorted(
    [README, *ROOT.glob("CONTRIBUTING.md"), *(ROOT / "docs").rglob("*.md")],
    key=lambda page: (page != README, page),
)
OURS = ("dynquant ", "python scripts/")
PROGRAM = get_command(app)
COMMAND_NAMES = [
    (name, *more)
    for name, command in PROGRAM.commands.items()
    for more in (
        [() if c.hidden else (own,) for own, c in getattr(command, "commands", {}).items()] or [()]
    )
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its language, its text, and the line of its fence."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in re.finditer(r"^( *)```(\w+).*\n((?:.*\n)*?)\1```$", text, re.MULTILINE):
        indent, language, body = found.groups()
        inner = re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        yield Block(language, inner, text.count("\n", 0, found.start()) + 1)


@dataclass(frozen=True)
class Command:
    """A command line, its exit code, and the output that the page shows; None if it shows none."""

    line: str
    code: int
    output: str | None = None

    @property
    def is_ours(self) -> bool:
        return self.line.startswith(OURS)

    @property
    def needs_torch(self) -> bool:
        return self.line.startswith("dynquant imatrix ")


def commands(block: Block) -> Iterator[Command]:
    text = block.text.replace("\\\n", "")
    if block.language == "sh":
        for line in text.splitlines():
            command, _, comment = line.partition(" #")
            code = re.search(r"exit code (\d+)", comment)
            for part in command.split("&&"):
                if part.strip() and not part.startswith("#"):
                    yield Command(part.strip(), int(code[1]) if code else 0)
    elif block.language == "console":
        for shown in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, output = shown.partition("\n")
            command, _, comment = line.partition(" #")
            code = re.search(r"exit code (\d+)", comment)
            expected = 1 if re.search(r"^error: ", output, re.MULTILINE) else 0
            yield Command(command.strip(), int(code[1]) if code else expected, output)


def run(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    return subprocess.run(
        ["bash", "-c", command],
        cwd=checkout,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def matches(shown: str, printed: str) -> bool:
    """Return whether a page shows what was printed; `...` stands for any text."""
    pattern = ".*?".join(map(re.escape, shown.rstrip().split("...")))
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A scratch folder in which the paths of a page exist and its commands write."""
    for name in ("tests", "scripts", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_all_examples_of_a_page_run_in_order(page: Path, checkout: Path) -> None:
    for block in blocks(page):
        place = f"{name_of(page)}:{block.line}"
        if block.language == "yaml":
            yaml.safe_load(block.text)
            if name := re.match(r"# (\S+\.ya?ml)\n", block.text):
                file = checkout / name[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text)
        elif block.language == "python":
            done = subprocess.run(
                [sys.executable, "-c", block.text], cwd=checkout, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{place}\n{done.stderr}"
        for command in commands(block):
            if not command.is_ours or (command.needs_torch and find_spec("torch") is None):
                continue
            done = run(command.line, checkout)
            context = f"{place}\n$ {command.line}\n{done.stdout}"
            assert done.returncode == command.code, context
            assert command.output is None or matches(command.output, done.stdout), context


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_other_command_is_a_step_of_the_gate(page: Path) -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    others = {
        command.line
        for block in blocks(page)
        if block.language == "sh"
        for command in commands(block)
        if not command.is_ours
    }
    assert {c for c in others if c not in gate} == set()
    if page == README:
        assert {"pip install -e '.[dev]'", "pytest"} <= others


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_file_has_a_target(page: Path) -> None:
    links = re.findall(r"(?:\]\(|srcset=\"|src=\")([^)#\"\s]+)", page.read_text("utf-8"))
    files = {link for link in links if not re.match(r"[a-z]+:", link)}
    missing = {file for file in files if not (page.parent / file).exists()}
    assert missing == set()


def test_pages_have_examples_of_every_kind() -> None:
    languages = [block.language for page in PAGES for block in blocks(page)]
    assert {"sh", "console", "yaml", "python"} <= set(languages)
    ours = [c for page in PAGES for block in blocks(page) for c in commands(block) if c.is_ours]
    assert len(ours) > 35


def test_every_command_is_in_an_example() -> None:
    lines = [c.line for page in PAGES for block in blocks(page) for c in commands(block)]
    assert len(COMMAND_NAMES) > 8
    for name in COMMAND_NAMES:
        assert any(re.match(rf"dynquant {' '.join(name)}\b", line) for line in lines), name


@cache
def options(name: tuple[str, ...]) -> set[str]:
    shown = CliRunner().invoke(app, [*name, "--help"]).output
    return set(re.findall(r"(--[a-z][a-z-]+)", shown)) - {"--help"}


@pytest.mark.slow
def test_every_option_of_convert_is_documented() -> None:
    section = re.search(
        r"^## `?dynquant convert`?$(.*?)^## ",
        (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    assert section
    assert options(("convert",)) <= set(re.findall(r"(--[a-z][a-z-]+)", section[1]))


@pytest.mark.slow
def test_every_option_of_a_dynquant_command_exists() -> None:
    existing = set().union(*map(options, COMMAND_NAMES), {"--help", "--version"})
    for page in PAGES:
        used = {
            option
            for block in blocks(page)
            for command in commands(block)
            if command.line.startswith("dynquant ")
            for option in re.findall(r"(?<= )(--[a-z][a-z-]+)", command.line)
        }
        assert used <= existing, page


@pytest.mark.parametrize(
    ("shown", "printed", "result"),
    [
        ("made in ... s\n", "made in 0.3 s\n", True),
        ("first\n...\nlast\n", "first\nsecond\nlast\n", True),
        ("first\n", "first\nsecond\n", False),
        ("a...b\n", "b\n", False),
    ],
)
def test_dots_stand_for_any_text(shown: str, printed: str, result: bool) -> None:
    assert matches(shown, printed) is result
