"""The reference pages agree with the code: generated pages are current, and no name is missing."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest
from places import ROOT

import dynquant
from dynquant.arch.families import families
from dynquant.quants.table import ALL

SCRIPT = ROOT / "scripts" / "docs" / "make_reference.py"
REFERENCE = ROOT / "docs" / "reference"
GENERATED = runpy.run_path(str(SCRIPT))["pages"]()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def names_in_code(page: str) -> set[str]:
    """Return the words of all inline code and code blocks of a page of docs/reference."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return {word for code in re.findall(r"`+([^`]+)`+", text) for word in re.findall(r"\w+", code)}


@pytest.mark.parametrize("page", GENERATED, ids=[p.name for p in GENERATED])
def test_a_generated_page_is_current(page: Path) -> None:
    current = page.read_text(encoding="utf-8") == GENERATED[page]
    assert current, f"{page} is out of date; run python scripts/docs/make_reference.py"


def test_every_public_name_is_on_the_page_of_the_python_api() -> None:
    assert set(dynquant.__all__) - names_in_code("python.md") == set()


def test_every_type_is_on_the_page_of_types() -> None:
    text = (REFERENCE / "types.md").read_text(encoding="utf-8")
    assert [name for name in ALL if not re.search(rf"\b{name}\b", text)] == []


def test_every_architecture_class_is_on_the_page_of_models() -> None:
    assert set(families()) - names_in_code("models.md") == set()


def test_contributing_lists_all_rooms_in_the_order_of_imports() -> None:
    tree = ast.parse((ROOT / "tests" / "project" / "test_imports.py").read_text(encoding="utf-8"))
    (rooms,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS"
    )
    listed = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", CONTRIBUTING, re.MULTILINE)
    assert [room for room in listed if room in rooms] == [r for r in rooms if r[:2] != "__"]


def test_contributing_lists_all_folders_of_tests() -> None:
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} - {"__pycache__"}
    assert folders == set(re.findall(r"^\| `tests/(\w+)/` \|", CONTRIBUTING, re.MULTILINE))
