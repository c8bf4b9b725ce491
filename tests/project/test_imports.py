"""The house: imports point down, only the roof knows typer and rich, the library never prints."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "dynquant"

# From the ground floor to the roof; a room imports from those before it. A module of the package
# itself is a room too.
ROOMS = (
    "errors",
    "keys",
    "arrays",
    "name_lists",
    "figures",
    "untrusted",
    "json_documents",
    "part_cache",
    "quants",
    "tensors",
    "transforms",
    "checkpoint",
    "vocab",
    "arch",
    "importance",
    "recipe",
    "interchange",
    "measure",
    "plan",
    "inputs",
    "conversion",
    "verification",
    "report",
    "release",
    "api",
    "cli",
    "__init__",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Yield the full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_package(file: Path) -> Iterator[str]:
    """Yield the rooms that a file imports; `import dynquant` itself is the room __init__."""
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "dynquant":
            yield rest[0] if rest and rest[0] in ROOMS else "__init__"


def names(files: list[Path]) -> list[str]:
    return [str(f.relative_to(PACKAGE)) for f in files]


def test_every_room_has_its_place() -> None:
    assert {room_of(f) for f in FILES} <= set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_imports_point_down(file: Path) -> None:
    if (room := room_of(file)) == "__init__":
        return
    # `from dynquant.x import y` names the package on its way to x; only a plain one is the roof.
    used = {r for r in of_package(file) if r != "__init__"}
    plain = {n for n in imports(file) if n == "dynquant"}
    floor = ROOMS.index(room)
    above = {r for r in used if ROOMS.index(r) > floor}
    assert not above, f"{room} stands below {above}"
    assert not plain or room == "cli"


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_only_the_roof_knows_typer_and_rich(file: Path) -> None:
    used = {n.split(".")[0] for n in imports(file)} & {"typer", "rich", "click"}
    allowed = {"cli": {"typer", "rich"}, "report": {"rich"}}.get(room_of(file), set())
    assert used <= allowed


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_the_library_neither_prints_nor_exits(file: Path) -> None:
    if room_of(file) == "cli":
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "exit", "sys.exit", "os._exit", "input")
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("sys.stdout", "sys.stderr")


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules in a fresh interpreter after some code."""
    listing = f"import sys; {code}; print(*sys.modules, file=sys.__stdout__)"
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("code", ["import dynquant", "import dynquant.cli"])
def test_starting_up_imports_nothing_heavy(code: str) -> None:
    heavy = {"numpy", "gguf", "yaml", "tokenizers", "safetensors", "tqdm", "rich", "torch"}
    heavy |= {"huggingface_hub", "jinja2"}
    assert not loaded_by(code) & heavy


@pytest.mark.slow
def test_nothing_needs_torch_or_transformers() -> None:
    used = {n.split(".")[0] for f in FILES for n in imports(f)}
    assert not used & {"torch", "transformers", "sentencepiece", "xllamacpp"}
