"""What a manifest says of a GGUF, `OUT.gguf.manifest.json`, and whether the file is that.

Only what can be compared with the file is read: names, sizes, places, types, shapes, checksums, and
what the file's own keys repeat. A manifest is a stranger's: nothing in it is followed as a path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dynquant.checkpoint.names import grouped
from dynquant.checkpoint.split import NAME, Shards
from dynquant.errors import VerificationError
from dynquant.verification.findings import Fault
from dynquant.verification.scan import Scanned

_MOST = 256 << 20
"""Bytes of a manifest that is read: R1's has under one megabyte."""

_VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """A file as the manifest has it."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the manifest has it; offset: of its first byte, from the start of its file."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    n_bytes: int
    file: int
    offset: int
    xxh64: str


@dataclass(frozen=True)
class Manifest:
    """What is compared; keys: what the GGUF's keys should say, by key."""

    path: Path
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]
    keys: dict[str, str]


def manifest_path(path: Path) -> Path:
    """Return the name of the manifest of a GGUF, given its file or any of its shards."""
    own = path.with_name(f"{path.name}.manifest.json")
    shard = NAME.fullmatch(path.name)
    if shard is None or own.exists():
        return own
    return path.with_name(f"{shard['prefix']}.gguf.manifest.json")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; raise VerificationError for one that is damaged or of another version."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
        if len(content) > _MOST:
            raise VerificationError(f"{path}: is longer than {_MOST} bytes; not a manifest")
        found: Any = json.loads(content)
    except OSError as e:
        raise VerificationError(f"{path}: cannot be read: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise VerificationError(f"{path}: is not JSON: {e}; take another copy of it") from e
    version = found.get("manifest") if isinstance(found, dict) else None  # type: ignore[reportUnknownMemberType]
    if version != _VERSION:
        raise VerificationError(
            f"{path}: is of version {version!r}; this dynquant reads {_VERSION}"
        )
    try:
        return _manifest(path, cast("dict[str, Any]", found))
    except (KeyError, TypeError, AttributeError) as e:
        raise VerificationError(
            f"{path}: is not as a manifest is ({type(e).__name__}: {e}); take another copy of it"
        ) from e


def _manifest(path: Path, found: dict[str, Any]) -> Manifest:
    files = tuple(
        FileEntry(_text(f["name"]), _count(f["bytes"]), _text(f["sha256"]))
        for f in found["output"]["files"]
    )
    tensors = tuple(
        TensorEntry(
            _text(t["name"]),
            _text(t["type"]),
            tuple(_count(d) for d in t["shape"]),
            _count(t["bytes"]),
            _count(t["file"]),
            _count(t["offset"]),
            _text(t["xxh64"]),
        )
        for t in found["tensors"]
    )
    keys = {
        "general.architecture": _text(found["output"]["architecture"]),
        "dynquant.version": _text(found["dynquant"]["version"]),
        "dynquant.recipe_sha256": _text(found["recipe"]["sha256"]),
        "dynquant.effort": _text(found["effort"]),
    }
    if found["importance"] is not None:
        keys["dynquant.imatrix_sha256"] = _text(found["importance"]["sha256"])
    return Manifest(path, files, tensors, keys)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def manifest_faults(
    manifest: Manifest, shards: Shards, sizes: list[int], scanned: Scanned
) -> Iterator[Fault]:
    """Say where files, tensors and checksums are not those of the manifest."""
    of = f"the manifest {manifest.path.name}"
    for key, value in manifest.keys.items():
        has = shards.keys.get(key)
        if has is None or has.value != value:
            says = "is not there" if has is None else f"is {has.value!r}"
            yield Fault(f"{key} {says}, and {value!r} in {of}", shards.path)
    if len(manifest.files) != len(shards.files):
        yield Fault(
            f"is one of {len(shards.files)} files, and {of} has {len(manifest.files)}", shards.path
        )
    found = list(_tensor_faults(manifest, shards, scanned, of))
    yield from found
    faulty = {fault.file for fault in (*found, *scanned.faults)}
    for file, entry, size, sha256 in zip(
        shards.files, manifest.files, sizes, scanned.sha256, strict=False
    ):
        if size != entry.n_bytes:
            yield Fault(f"is {size:,} bytes long, and {entry.n_bytes:,} in {of}", file.path)
        elif sha256 != entry.sha256:
            where = (
                ""
                if file.path in faulty
                else f"; its tensors are, so that it is in bytes 0 to {file.table_end}, the keys"
                " and the tensor table"
            )
            yield Fault(f"its sha256 is not that of {of}{where}", file.path)


def _tensor_faults(
    manifest: Manifest, shards: Shards, scanned: Scanned, of: str
) -> Iterator[Fault]:
    here = {t.name: (number, t) for number, f in enumerate(shards.files) for t in f.tensors}
    listed = {entry.name for entry in manifest.tensors}
    absent = [entry.name for entry in manifest.tensors if entry.name not in here]
    if absent:
        yield Fault(f"{', '.join(grouped(absent))} of {of} is not there", shards.path)
    if more := [name for name in here if name not in listed]:
        yield Fault(f"{', '.join(grouped(more))} is not in {of}", shards.path)
    owners = {entry.xxh64: entry.name for entry in manifest.tensors}
    for entry in manifest.tensors:
        if entry.name not in here:
            continue
        number, tensor = here[entry.name]
        file = shards.files[number]
        at = file.data_offset + tensor.offset
        has = (tensor.type_name, tensor.shape, tensor.n_bytes, number, at)
        wanted = (entry.type_name, entry.shape, entry.n_bytes, entry.file, entry.offset)
        names = ("type", "shape", "bytes", "file", "offset")
        for what, a, b in zip(names, has, wanted, strict=True):
            if a != b:
                yield Fault(
                    f"{what} is {_shown(a)}, and {_shown(b)} in {of}", file.path, entry.name, at
                )
        if scanned.xxh64.get(entry.name) != entry.xxh64:
            other = owners.get(scanned.xxh64.get(entry.name, ""))
            whose = f"; they are those of {other}" if other else ""
            yield Fault(
                f"its {tensor.n_bytes:,} bytes are not those of {of}{whose}",
                file.path,
                entry.name,
                at,
            )


def _shown(value: object) -> str:
    return str(list(cast("tuple[int, ...]", value))) if isinstance(value, tuple) else str(value)
