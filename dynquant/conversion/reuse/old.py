"""An earlier output whose tensors may be copied, with its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from dynquant.conversion.manifest import Manifest, Tensor, find_manifest, read_manifest
from dynquant.errors import ConvertError
from dynquant.quants.table import ALL, KEPT
from dynquant.tensors import ShardFile, Stored

_PIECE = 1 << 22
"""Bytes of a tensor that are hashed at a time."""


@dataclass(frozen=True, eq=False)
class Old:
    """An earlier output.

    path:     as the user named it
    manifest_sha256: of the manifest's bytes
    files:    in the order of the manifest
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    files: tuple[Path, ...]
    _readers: dict[int, ShardFile] = field(default_factory=dict[int, ShardFile], repr=False)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {t.name: t for t in self.manifest.tensors}

    def source(self, tensor: Tensor) -> Stored:
        """Return the blocks of a tensor as rows."""
        reader = self._readers.setdefault(tensor.file, ShardFile(self.files[tensor.file]))
        kind = ALL.get(tensor.type) or KEPT[tensor.type]
        return Stored(reader, tensor.offset, tuple(tensor.shape), kind)

    def damaged(self, tensors: Iterable[Tensor], threads: int) -> set[str]:
        """Return the names of tensors whose bytes are not those that the manifest records."""
        with ThreadPoolExecutor(threads) as pool:
            checked = list(tensors)
            return {
                t.name
                for t, is_sound in zip(checked, pool.map(self._is_sound, checked), strict=True)
                if not is_sound
            }

    def _is_sound(self, tensor: Tensor) -> bool:
        source = self.source(tensor)
        digest = xxhash.xxh64()
        piece = np.empty(min(_PIECE, max(tensor.bytes, 1)), np.uint8)
        for start in range(0, tensor.bytes, _PIECE):
            part = piece[: min(_PIECE, tensor.bytes - start)]
            source.file.read(source.offset + start, part)
            digest.update(part.data)
        return digest.hexdigest() == tensor.xxh64


def read_old(path: Path) -> Old:
    """Read the manifest of an output, and look at its files.

    path: the GGUF or one of its shards

    Raises ManifestError if the manifest is missing or not valid, ConvertError if a file is missing
    or has another size.
    """
    if not path.exists():
        raise ConvertError(f"{path}: not found; give the GGUF of an earlier conversion (--reuse)")
    place = find_manifest(path)
    manifest = read_manifest(place)
    files = tuple(place.parent / file.name for file in manifest.output.files)
    ConvertError.raise_any(_misfits(manifest, files, place))
    return Old(path, manifest, hashlib.sha256(place.read_bytes()).hexdigest(), files)


def _misfits(manifest: Manifest, files: tuple[Path, ...], place: Path) -> Iterable[str]:
    for file, recorded in zip(files, manifest.output.files, strict=True):
        if not file.is_file():
            yield f"{file}: not found, though {place.name} records it; give the complete output"
        elif (size := file.stat().st_size) != recorded.bytes:
            yield (
                f"{file}: has {size:,} bytes, not the {recorded.bytes:,} of {place.name}; it is not"
                " the output that was recorded"
            )


def refuse_output(old: Old, paths: Iterable[Path]) -> None:
    """Raise ConvertError if a conversion would replace a file of the output that it reuses."""
    ConvertError.raise_any(
        f"{path}: is a file of the output that is reused; name another output"
        for path in paths
        if path.exists() and any(path.samefile(file) for file in old.files)
    )
