"""Compare a GGUF with the manifest beside it (`OUT.gguf.manifest.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from dynquant.checkpoint.gguf_shards import Shards
from dynquant.conversion.manifest import Manifest
from dynquant.figures import counted
from dynquant.name_lists import grouped
from dynquant.verification.findings import Fault
from dynquant.verification.scan import Scanned


def _keys(manifest: Manifest) -> dict[str, str | int]:
    """Return the values that the GGUF's keys should have."""
    keys: dict[str, str | int] = {
        "general.architecture": manifest.output.architecture,
        "dynquant.version": manifest.dynquant.version,
        "dynquant.recipe_sha256": manifest.recipe.sha256,
        "dynquant.effort": manifest.effort,
    }
    if manifest.importance is not None:
        keys["dynquant.imatrix_sha256"] = manifest.importance.sha256
        if manifest.importance.shrink is not None:
            keys["dynquant.imatrix_shrink"] = manifest.importance.shrink
        if manifest.importance.unseen is not None:
            keys["dynquant.imatrix_unseen"] = manifest.importance.unseen
    if manifest.moments is not None:
        keys["dynquant.moments_header_sha256"] = manifest.moments.header_sha256
    return keys


def manifest_faults(
    manifest: Manifest, name: str, shards: Shards, sizes: list[int], scanned: Scanned
) -> Iterator[Fault]:
    """Yield where files, tensors and checksums differ from a manifest.

    name: the file name of the manifest, for messages
    """
    of = f"the manifest {name}"
    files = manifest.output.files
    for key, value in _keys(manifest).items():
        has = shards.keys.get(key)
        if has is None or has.value != value:
            here = "is missing" if has is None else f"is {has.value!r}"
            yield Fault(f"{key} {here}, but {value!r} in {of}", shards.path)
    if len(files) != len(shards.files):
        yield Fault(
            f"belongs to {counted(len(shards.files), 'file')}, but {of} lists {len(files)}",
            shards.path,
        )
    found = list(_tensor_faults(manifest, shards, scanned, of))
    yield from found
    faulty = {fault.file for fault in (*found, *scanned.faults)}
    for file, entry, size, sha256 in zip(shards.files, files, sizes, scanned.sha256, strict=False):
        if size != entry.bytes:
            yield Fault(f"is {size:,} bytes long, but {entry.bytes:,} in {of}", file.path)
        elif sha256 != entry.sha256:
            where = (
                ""
                if file.path in faulty
                else f"; the tensors agree, so the difference is in bytes 0 to {file.table_end},"
                " the keys and the tensor table"
            )
            yield Fault(f"its sha256 differs from {of}{where}", file.path)


def _tensor_faults(
    manifest: Manifest, shards: Shards, scanned: Scanned, of: str
) -> Iterator[Fault]:
    here = {t.name: (number, t) for number, f in enumerate(shards.files) for t in f.tensors}
    listed = {entry.name for entry in manifest.tensors}
    absent = [entry.name for entry in manifest.tensors if entry.name not in here]
    if absent:
        yield Fault(f"{', '.join(grouped(absent))} is missing, but listed in {of}", shards.path)
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
        wanted = (entry.type, tuple(entry.shape), entry.bytes, entry.file, entry.offset)
        names = ("type", "shape", "bytes", "file", "offset")
        for what, a, b in zip(names, has, wanted, strict=True):
            if a != b:
                yield Fault(
                    f"{what} is {_shown(a)}, but {_shown(b)} in {of}", file.path, entry.name, at
                )
        if scanned.xxh64.get(entry.name) != entry.xxh64:
            other = owners.get(scanned.xxh64.get(entry.name, ""))
            whose = f"; they are the bytes of {other}" if other else ""
            yield Fault(
                f"its {tensor.n_bytes:,} bytes differ from the checksum in {of}{whose}",
                file.path,
                entry.name,
                at,
            )


def _shown(value: object) -> str:
    return str(list(cast("tuple[int, ...]", value))) if isinstance(value, tuple) else str(value)
