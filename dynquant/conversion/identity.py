"""What decides the bytes of an output: whoever has the same of it makes the same file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from dynquant.conversion.layout import Layout
from dynquant.errors import CheckpointError
from dynquant.plan.plan import Plan
from dynquant.tensors import ShardFile

_GGUF_HEAD = 1 << 20
_MOST = 256 << 20
"""Bytes of a header that are hashed."""


def identity_of(plan: Plan, layout: Layout) -> dict[str, Any]:
    """Return what decides the bytes, in values that JSON holds, each with a name people know.

    layout: the headers hold all keys, names, shapes, types and places
    """
    found: dict[str, Any] = {
        "dynquant version": version("dynquant"),
        "recipe": plan.recipe.sha256,
        "effort": plan.effort,
        "imatrix": plan.imatrix.sha256 if plan.imatrix else None,
        "shards": len(layout.files),
        "plan": hashlib.sha256(b"".join(file.header for file in layout.files)).hexdigest(),
        "source": {path.name: source_of(path) for path in source_files(plan)},
    }
    return found


def source_files(plan: Plan) -> list[Path]:
    """Return the files that a plan's tensors are read from, each once, in order of first use."""
    found = (f.path for t in plan.tensors for f in readers_of(plan.sources[t.name].source))
    return list(dict.fromkeys(found))


def readers_of(source: object) -> Iterable[ShardFile]:
    """Yield the files that a source reads, whatever it is made of."""
    if isinstance(source, ShardFile):
        yield source
    elif is_dataclass(source):
        for f in fields(source):
            yield from readers_of(getattr(source, f.name))
    elif isinstance(source, (list, tuple)):
        for part in cast(Iterable[Any], source):
            yield from readers_of(part)


def source_of(path: Path) -> dict[str, Any]:
    """Return what tells one version of a file from another without reading all of it."""
    try:
        there = path.stat()
        with path.open("rb") as file:
            # A safetensors file begins with the length of its header; keys and table of a GGUF are
            # longer only where the vocabulary is.
            n = int.from_bytes(file.read(8), "little") + 8 if path.suffix == ".safetensors" else 0
            file.seek(0)
            header = file.read(min(n or _GGUF_HEAD, _MOST))
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e
    return {
        "bytes": there.st_size,
        "header": hashlib.sha256(header).hexdigest(),
        "modified": there.st_mtime_ns,
    }
