"""GGUFs that are evaluated: their files, sizes and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from dynquant.checkpoint.gguf_shards import Shards, open_gguf
from dynquant.errors import EvalError
from dynquant.evaluate.reference import FilePart

_PIECE = 16 << 20


@dataclass(frozen=True)
class Gguf:
    """A GGUF and the hashes of its files, of all shards."""

    shards: Shards
    files: tuple[FilePart, ...]

    @property
    def path(self) -> Path:
        """Return the first file."""
        return self.shards.path

    @property
    def n_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def bits_per_weight(self) -> float:
        """Return the bits of the tensors for each weight."""
        tensors = [tensor for _, tensor in self.shards.tensors()]
        return 8 * sum(t.n_bytes for t in tensors) / sum(prod(t.shape) for t in tensors)

    @property
    def matrix_types(self) -> set[str]:
        """Return the names of the types of all tensors with two or more dimensions."""
        return {t.type_name for _, t in self.shards.tensors() if len(t.shape) > 1}

    @property
    def context(self) -> int:
        """Return the longest context that the model was made for, in tokens; 0 if not stated."""
        keys = self.shards.keys
        architecture = keys.get("general.architecture")
        key = keys.get(f"{architecture.value}.context_length") if architecture else None
        return key.value if key is not None and isinstance(key.value, int) else 0

    @property
    def identity(self) -> str:
        """Return a hash of all files' hashes."""
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()


def hashed(path: Path, progress: Callable[[int, int], None]) -> Gguf:
    """Read the header and compute the hashes of a GGUF.

    progress: called with the bytes that were read and those of all files

    Raises CheckpointError for a damaged file, EvalError if it cannot be read.
    """
    shards = open_gguf(path)
    sizes = [file.path.stat().st_size for file in shards.files]
    done = 0

    def step(n: int) -> None:
        nonlocal done
        done += n
        progress(done, sum(sizes))

    files = tuple(
        FilePart(name=file.path.name, bytes=size, sha256=_sha256(file.path, step))
        for file, size in zip(shards.files, sizes, strict=True)
    )
    return Gguf(shards, files)


def _sha256(path: Path, step: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                step(len(piece))
    except OSError as e:
        raise EvalError(f"{path}: cannot be read: {e.strerror}") from e
    return digest.hexdigest()
