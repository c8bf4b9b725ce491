"""Imports have one direction, only the CLI uses typer, and the library never prints."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "dynquant"

# A room imports only from rooms before it. A top-level module of the package is a room too.
ROOMS = (
    "errors",
    "distribution",
    "systems",
    "keys",
    "arrays",
    "name_lists",
    "figures",
    "untrusted",
    "json_documents",
    "text_settings",
    "texts",
    "part_cache",
    "quants",
    "stored_files",
    "tensors",
    "transforms",
    "checkpoint",
    "vocab",
    "arch",
    "importance",
    "recipe",
    "interchange",
    "feedback",
    "measure",
    "plan",
    "inputs",
    "conversion",
    "cluster",
    "verification",
    "evaluate",
    "calibrate",
    "budget",
    "auto",
    "report",
    "release",
    "publishing",
    "api",
    "cli",
    "__init__",
    "__main__",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def nodes(file: Path) -> list[ast.AST]:
    return [*ast.walk(ast.parse(file.read_text()))]


@cache
def imports(file: Path) -> set[str]:
    """Return the full names of all modules that a file imports anywhere."""
    found: set[str] = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def of_package(file: Path) -> Iterator[str]:
    """Yield the rooms that a file imports; `import dynquant` itself is the room __init__."""
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "dynquant":
            yield rest[0] if rest and rest[0] in ROOMS else "__init__"


def test_every_room_is_listed() -> None:
    assert {room_of(f) for f in FILES} <= set(ROOMS)


@pytest.mark.slow
def test_rooms_import_only_from_rooms_before_them() -> None:
    for file in FILES:
        if (room := room_of(file)) == "__init__":
            continue
        # `from dynquant.x import y` also names the package; only a plain `import dynquant` uses its
        # __init__.
        used = {r for r in of_package(file) if r != "__init__"}
        above = {r for r in used if ROOMS.index(r) > ROOMS.index(room)}
        assert not above, f"{file}: {room} is before {above}"
        assert room == "cli" or "dynquant" not in imports(file), file


@pytest.mark.slow
def test_only_the_cli_uses_typer_and_only_cli_and_report_use_rich() -> None:
    for file in FILES:
        used = {n.split(".")[0] for n in imports(file)} & {"typer", "rich", "click"}
        allowed = {"cli": {"typer", "rich"}, "report": {"rich"}}.get(room_of(file), set())
        assert used <= allowed, file


@pytest.mark.slow
def test_the_library_neither_prints_nor_exits() -> None:
    for file in FILES:
        if room_of(file) == "cli":
            continue
        for node in nodes(file):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "exit", "sys.exit", "os._exit", "input"), file
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("sys.stdout", "sys.stderr"), file


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules in a fresh interpreter after some code."""
    listing = f"import sys; {code}; print(*sys.modules, file=sys.__stdout__)"
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.slow
@pytest.mark.parametrize("code", ["import dynquant", "import dynquant.cli"])
def test_import_loads_no_heavy_package(code: str) -> None:
    heavy = {"numpy", "gguf", "yaml", "tokenizers", "safetensors", "tqdm", "rich", "torch"}
    heavy |= {"huggingface_hub", "jinja2"}
    assert not loaded_by(code) & heavy


@pytest.mark.slow
def test_only_calibration_imports_torch_and_transformers() -> None:
    heavy = {"torch", "transformers", "sentencepiece", "xllamacpp"}
    used = {(room_of(f), n.split(".")[0]) for f in FILES for n in imports(f)}
    found = {(room, name) for room, name in used if name in heavy}
    assert found == {("calibrate", "torch"), ("calibrate", "transformers")}


@pytest.mark.slow
def test_only_the_worker_imports_the_runtime_of_evaluation() -> None:
    runtime = "dynquant.evaluate.runtime"
    loading = {f for f in FILES if any(name.startswith(runtime) for name in imports(f))}
    folders = {f.relative_to(PACKAGE / "evaluate").parts[0] for f in loading}
    assert folders == {"runtime", "worker", "generation.py"}
