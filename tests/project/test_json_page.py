"""docs/reference/json.md lists the keys that the commands print: no more, and no fewer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imatrices import write_counted
from places import ROOT, TINY_BOOKS
from typer.testing import CliRunner

import dynquant
from dynquant.cli import app
from dynquant.cli.console import log_as

PAGE = ROOT / "docs" / "reference" / "json.md"
FREE = {"made", "type_counts", "keys", "key_types", "ignored", "readers", "tensors", "types"}
"""Keys whose values are objects with names of tensors, types, keys or readers."""

MODEL = str(TINY_BOOKS)
COMMANDS = {
    "plan": ("plan", MODEL, "-r", "q8_0"),
    "inspect": ("inspect", "made.gguf"),
    "verify": ("verify", "damaged.gguf"),
    "imatrix audit": ("imatrix", "audit", "i.gguf", MODEL),
    "recipe diff": ("recipe", "diff", "q8_0", "q4_0", MODEL),
    "recipe explain": ("recipe", "explain", "q8_0", MODEL, "blk.1.ffn_down"),
    "solve": ("solve", MODEL, "--fit", "60MiB"),
    "types": ("types",),
    "recipes": ("recipes",),
}


def keys_of(document: Any, above: str = "") -> Iterator[str]:
    if isinstance(document, list):
        items: list[Any] = document
        for item in items:
            if isinstance(item, dict):
                yield from keys_of(item, f"{above}[]")
    elif isinstance(document, dict):
        entries: dict[str, Any] = document
        for key, value in entries.items():
            name = f"{above}.{key}".removeprefix(".")
            is_free = key in FREE and isinstance(value, dict)
            inner = [] if is_free else [*keys_of(value, name)]
            yield from inner or [name]


def documented(command: str) -> set[str]:
    """Return the keys in the first column of a command's table."""
    pattern = rf"^## dynquant {command} --json$(.*?)(?=^## |\Z)"
    section = re.search(pattern, PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert section
    firsts = re.findall(r"^\| (`.*?) \|", section[1], re.MULTILINE)
    return {key for first in firsts for key in re.findall(r"`(.+?)`", first)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    dynquant.convert(TINY_BOOKS, folder / "made.gguf", recipe="q8_0", manifest=False)
    entry = np.ones((1, 256), np.float32), [9]
    write_counted(folder / "i.gguf", {"blk.0.attn_q.weight": entry})
    content = (folder / "made.gguf").read_bytes()
    (folder / "damaged.gguf").write_bytes(content[:-32] + b"\xff" * 32)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_documented_keys_are_those_of_the_document(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    printed = CliRunner().invoke(app, [*COMMANDS[command], "--json"]).stdout
    found = set(keys_of(json.loads(printed)))
    assert documented(command) == found


@pytest.mark.slow
def test_documented_events_are_those_of_a_conversion(folder: Path) -> None:
    out = str(folder / "logged.gguf")
    done = CliRunner().invoke(
        app, ["convert", MODEL, "-o", out, "-r", "q8_0", "--log-format", "json"]
    )
    log_as("text")
    rows = dict(re.findall(r"^\| (`(?:start|progress|done)`) \| (.*) \|$", PAGE.read_text(), re.M))
    for line in done.stderr.splitlines():
        event = json.loads(line)
        if row := rows.get(f"`{event['event']}`"):
            assert {*keys_of(event)} - {"event", "seconds"} == {*re.findall(r"`(.+?)`", row)}
    assert len(rows) == 3
