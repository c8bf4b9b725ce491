"""What decides the bytes of an output: whoever has the same of it makes the same file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dynquant.checkpoint.packed.settings import MODELOPT
from dynquant.conversion.layout import Layout
from dynquant.errors import CheckpointError
from dynquant.plan.plan import Plan
from dynquant.tensors import Computed, parts_of

_GGUF_HEAD = 1 << 20
_MOST = 256 << 20
"""Bytes of a header that are hashed."""


def identity_of(plan: Plan, layout: Layout) -> dict[str, Any]:
    """Return what decides the bytes, in values that JSON holds, each with a name people know.

    layout: the headers hold all keys, names, shapes, types and places
    """
    sources = plan.source_files
    return {
        "dynquant version": version("dynquant"),
        "recipe": plan.recipe.sha256,
        "effort": plan.effort,
        "imatrix": plan.imatrix.sha256 if plan.imatrix else None,
        "shards": len(layout.files),
        "plan": hashlib.sha256(b"".join(file.header for file in layout.files)).hexdigest(),
        "computed": _computed(plan),
        "config": {path.name: _hash_of(path) for path in _configs(sources)},
        "source": {path.name: source_of(path) for path in sources},
    }


def versions_of(plan: Plan) -> dict[Path, tuple[int, int]]:
    """Return size and time of change of each file that a plan's tensors are read from."""
    found: dict[Path, tuple[int, int]] = {}
    for path in plan.source_files:
        with _read(path) as file:
            there = os.fstat(file.fileno())
        found[path] = (there.st_size, there.st_mtime_ns)
    return found


def refuse_written(
    before: Mapping[Path, tuple[int, int]], now: Mapping[Path, tuple[int, int]]
) -> None:
    """Raise CheckpointError if a source is not what it was when the run began."""
    CheckpointError.raise_any(
        f"{path}: was written while it was read; convert it anew (--restart) when it is complete"
        for path, version in before.items()
        if now.get(path) != version
    )


def _computed(plan: Plan) -> str:
    """Return the hash of all weights that no file holds."""
    digest = hashlib.sha256()
    for tensor in plan.sources.values():
        for part in parts_of(tensor.source, Computed):
            digest.update(np.ascontiguousarray(part.values, "<f4").data)
    return digest.hexdigest()


def _configs(sources: Sequence[Path]) -> list[Path]:
    """Return the settings beside the shards: numbers of theirs are in weights, such as scales."""
    folders = dict.fromkeys(path.parent for path in sources)
    return [p for f in folders for p in (f / "config.json", f / MODELOPT) if p.is_file()]


def _hash_of(path: Path) -> str:
    with _read(path) as file:
        return hashlib.sha256(file.read(_MOST)).hexdigest()


@contextmanager
def _read(path: Path) -> Generator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e


def source_of(path: Path) -> dict[str, Any]:
    """Return what tells one version of a file from another without reading all of it."""
    with _read(path) as file:
        there = os.fstat(file.fileno())
        # A safetensors file begins with the length of its header; keys and table of a GGUF are
        # longer only where the vocabulary is.
        n = int.from_bytes(file.read(8), "little") + 8 if path.suffix == ".safetensors" else 0
        file.seek(0)
        header = file.read(min(n or _GGUF_HEAD, _MOST))
    return {
        "bytes": there.st_size,
        "header": hashlib.sha256(header).hexdigest(),
        "modified": there.st_mtime_ns,
    }
