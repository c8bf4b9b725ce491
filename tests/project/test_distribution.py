"""Every place that says how to install dynquant names its distribution, not the other project's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from places import ROOT

from dynquant.distribution import DISTRIBUTION, our_version, requirement

OTHER = re.compile(r"pip install\b[^\n]*?(?<![\w./-])dynquant(?![\w/-])")
"""An install command with the name of the import."""

FILES = sorted(
    path
    for pattern in ("*.md", "*.toml", "dynquant/**/*.py", "docs/**/*.md", "scripts/**/*")
    for path in (*ROOT.glob(pattern), *(ROOT / ".github").rglob("*.yml"))
    if path.suffix in (".md", ".toml", ".py", ".yml", ".sh")
)


def test_the_project_has_the_name_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (project["name"], project["version"]) == (DISTRIBUTION, our_version())
    assert set(project["scripts"]) == {"dynquant"}


def test_citation_and_changelog_have_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version
    headings = re.findall(r"^## (\S+) ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == version


def test_no_file_says_to_install_the_other_project() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in set(FILES)
        for match in OTHER.finditer(path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_other"),
    [
        ("pip install dynquant", True),
        ("pip install 'dynquant[hub]'", True),
        ('python -m pip install "dynquant[hub]==$VERSION"', True),
        ("pip install dynquant==0.1.0", True),
        ("pip install dynquant-gguf==0.1.0", False),
        ("pip install ./dynquant", False),
    ],
)
def test_install_commands_of_the_other_project_are_found(text: str, is_other: bool) -> None:
    assert bool(OTHER.search(text)) is is_other


def test_requirement_has_extra_and_version() -> None:
    assert requirement() == "dynquant-gguf"
    assert requirement("hub", "0.1.0") == "dynquant-gguf[hub]==0.1.0"


def test_action_installs_the_distribution() -> None:
    action = Path(ROOT / ".github" / "actions" / "dynquant-convert" / "action.yml")
    assert requirement("hub", "$VERSION") in action.read_text("utf-8")
