"""Verify a GGUF without its source: structure, blocks, manifest, requirements of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dynquant.checkpoint.gguf_shards import Shards, first_file, open_gguf
from dynquant.conversion.manifest import Manifest, manifest_beside, read_manifest
from dynquant.conversion.write import default_threads
from dynquant.errors import CheckpointError, ManifestError
from dynquant.figures import counted
from dynquant.quants.table import ALL, KEPT
from dynquant.verification.against_manifest import manifest_faults
from dynquant.verification.findings import Fault, Verification
from dynquant.verification.lints import lint_faults, lint_warnings
from dynquant.verification.needed import needed_faults, needed_unchecked, needed_warnings
from dynquant.verification.scan import scan
from dynquant.verification.structure import structure_faults, structure_warnings


def verify_file(
    path: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check every byte of a GGUF, and its manifest if there is one beside it.

    path:     the file; for a model in shards, any shard or the name without the shard number
    threads:  None uses one for each CPU
    progress: called with the bytes done and the total

    A file that is not a GGUF is reported as a fault. Raises CheckpointError if reading fails later.
    """
    manifest, problems = _read_manifest(path)
    try:
        shards = open_gguf(first_file(path))
        sizes = [file.path.stat().st_size for file in shards.files]
    except (CheckpointError, OSError) as e:
        messages = e.messages if isinstance(e, CheckpointError) else (f"{path}: {e.strerror}",)
        faults = (*problems, *map(Fault, messages))
        unchecked = ("blocks and checksums: the header cannot be read",)
        return Verification((), 0, faults, (), (), unchecked)
    total = sum(sizes)
    found = scan(
        shards,
        sizes,
        threads=threads or default_threads(),
        hashes=manifest is not None,
        progress=progress and (lambda done: progress(done, total)),
    )
    pairs = list(zip(shards.files, sizes, strict=True))
    faults = [*problems]
    faults += (fault for file, size in pairs for fault in structure_faults(file, size))
    faults += found.faults
    if manifest is not None:
        faults += manifest_faults(manifest, manifest_beside(path).name, shards, sizes, found)
    faults += [*lint_faults(shards), *needed_faults(shards)]
    warnings = [text for file, size in pairs for text in structure_warnings(file, size)]
    warnings += [*lint_warnings(shards, found.zero), *needed_warnings(shards)]
    if manifest is not None:
        warnings += _other_names(manifest, shards)
    return Verification(
        tuple((file.path, size) for file, size in pairs),
        sum(len(file.tensors) for file in shards.files),
        tuple(faults),
        tuple(warnings),
        tuple(_checked(shards, manifest)),
        tuple(_unchecked(shards, manifest, problems)),
    )


def _read_manifest(path: Path) -> tuple[Manifest | None, list[Fault]]:
    """Return the manifest beside a file, or why it cannot be read."""
    place = manifest_beside(path)
    if not place.exists():
        return None, []
    try:
        return read_manifest(place), []
    except ManifestError as e:
        return None, [Fault(message) for message in e.messages]


def _other_names(manifest: Manifest, shards: Shards) -> Iterator[str]:
    for file, entry in zip(shards.files, manifest.output.files, strict=False):
        if file.path.name != entry.name:
            yield f"{file.path}: the manifest names this file {entry.name}"


def _checked(shards: Shards, manifest: Manifest | None) -> Iterator[str]:
    n = sum(len(file.tensors) for file in shards.files)
    yield "structure: keys, tensor table, offsets, padding, sizes"
    yield f"blocks of {counted(n, 'tensor')}: every scale is finite, every code is valid"
    if manifest is not None:
        yield (
            f"manifest: sha256 of {counted(len(manifest.output.files), 'file')}, xxh64, type, shape"
            f" and offset of {counted(len(manifest.tensors), 'tensor')}"
        )


def _unchecked(shards: Shards, manifest: Manifest | None, problems: list[Fault]) -> Iterator[str]:
    if manifest is None:
        why = "the manifest cannot be read" if problems else "the file has no manifest"
        yield f"checksums: {why}"
    odd = sorted({t.type_name for _, t in shards.tensors()} - set(ALL | KEPT))
    if odd:
        yield f"blocks of {', '.join(odd)}"
    yield from needed_unchecked(shards, is_listed=manifest is not None)
