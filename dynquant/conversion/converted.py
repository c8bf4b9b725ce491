"""What a conversion gives back: files, their hashes, and what each tensor lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynquant.quants.error import TensorError


@dataclass(frozen=True)
class Converted:
    """A finished output.

    paths:   its files, one or several shards
    sha256:  of each file; xxh64: of each tensor's bytes, in the order of the plan, as
             llama-gguf-hash prints it
    errors:  what each tensor lost, in the same order; None where its weights are as they were
    resumed: bytes of tensors that an earlier run had written
    """

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    xxh64: tuple[str, ...]
    errors: tuple[TensorError | None, ...]
    resumed: int
