"""Facts about a source file that distinguish its versions without reading all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dynquant.checkpoint.hub import known_sha256
from dynquant.errors import CheckpointError
from dynquant.stored_files import StoredFile, stored_file

_GGUF_HEAD = 1 << 20
_MOST = 256 << 20
"""Limit on the bytes of a header that are hashed."""


@dataclass(frozen=True)
class SourceFacts:
    """A file's size, the hash of its header, and what else changes with its content."""

    n_bytes: int
    header_sha256: str
    version: Mapping[str, str]


def source_facts(path: Path | StoredFile) -> SourceFacts:
    """Return the facts of a safetensors file or a GGUF; raise CheckpointError if unreadable."""
    stored = stored_file(path)
    version = stored.version()
    with opened(stored) as file:
        n_bytes = file.seek(0, 2)
        file.seek(0)
        # A safetensors file begins with the length of its header; the keys and the table of a GGUF
        # are longer than a megabyte only where the vocabulary is.
        is_gguf = stored.path.suffix != ".safetensors"
        n = 0 if is_gguf else int.from_bytes(file.read(8), "little") + 8
        file.seek(0)
        header = file.read(min(n or _GGUF_HEAD, _MOST))
    return SourceFacts(n_bytes, hashlib.sha256(header).hexdigest(), version)


def published_sha256(file: StoredFile) -> str | None:
    """Return the sha256 that the publisher of a file states; None if it is not known."""
    return file.sha256 or (None if file.is_remote else known_sha256(file.path))


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


@contextmanager
def opened(stored: StoredFile) -> Generator[BinaryIO]:
    """Open a stored file to read; raise CheckpointError for an error of the system."""
    try:
        with stored.open() as file:
            yield file
    except OSError as e:
        raise CheckpointError(f"{stored.path}: cannot be read: {e.strerror}") from e
