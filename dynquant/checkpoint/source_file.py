"""Facts about a source file that distinguish its versions without reading all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dynquant.errors import CheckpointError

_GGUF_HEAD = 1 << 20
_MOST = 256 << 20
"""Limit on the bytes of a header that are hashed."""


@dataclass(frozen=True)
class SourceFacts:
    """A file's size, the hash of its header, and when it was modified (nanoseconds)."""

    n_bytes: int
    header_sha256: str
    modified: int


def source_facts(path: Path) -> SourceFacts:
    """Return the facts of a safetensors file or a GGUF; raise CheckpointError if unreadable."""
    with reading(path) as file:
        there = os.fstat(file.fileno())
        # A safetensors file begins with the length of its header; the keys and the table of a GGUF
        # are longer than a megabyte only where the vocabulary is.
        n = int.from_bytes(file.read(8), "little") + 8 if path.suffix == ".safetensors" else 0
        file.seek(0)
        header = file.read(min(n or _GGUF_HEAD, _MOST))
    return SourceFacts(there.st_size, hashlib.sha256(header).hexdigest(), there.st_mtime_ns)


def hash_of_settings(path: Path) -> str:
    """Return the sha256 of a small file such as config.json."""
    with reading(path) as file:
        return hashlib.sha256(file.read(_MOST)).hexdigest()


@contextmanager
def reading(path: Path) -> Generator[BinaryIO]:
    """Open a file to read; raise CheckpointError for an error of the system."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e
