"""The C sources keep to 100 columns, and every header can be compiled standalone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists()) / (
    "dynquant/quants/csrc"
)
SOURCES = sorted([*CSRC.glob("*.c"), *CSRC.glob("*.h")])
HEADERS = [path for path in SOURCES if path.suffix == ".h"]
# Declarations that a standalone header does not use, and vectors of other ISAs.
UNUSED = ["-Wno-unused-function", "-Wno-unused-const-variable", "-Wno-psabi"]
COMPILER = shutil.which(os.environ.get("CC", "cc"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_line_has_more_than_100_columns(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [f"line {i}" for i, line in enumerate(lines, 1) if len(line) > 100] == []


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("path", HEADERS, ids=lambda p: p.name)
def test_a_header_includes_all_that_it_uses(path: Path) -> None:
    python = Path(sysconfig.get_paths()["include"])
    if path.name == "face.h" and not (python / "Python.h").exists():
        pytest.skip("no headers of Python")
    assert COMPILER is not None
    command = [COMPILER, "-std=gnu11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *UNUSED]
    done = subprocess.run(
        [*command, "-I", str(CSRC), "-I", str(python), "-x", "c", "-"],
        input=f'#include "{path.name}"\n',
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
