"""All that can be said of a GGUF without its source: structure, blocks, manifest, lints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dynquant.checkpoint.gguf_shards import Shards, open_gguf, shard_names
from dynquant.conversion.manifest import Manifest, read_manifest
from dynquant.conversion.write import default_threads
from dynquant.errors import CheckpointError, ManifestError
from dynquant.quants.table import ALL, KEPT
from dynquant.verification.against_manifest import manifest_faults, place_of
from dynquant.verification.findings import Fault, Verified, counted
from dynquant.verification.lints import lint_faults, lint_warnings
from dynquant.verification.needed import needed_faults, needed_unchecked
from dynquant.verification.scan import scan
from dynquant.verification.structure import structure_faults, structure_warnings


def verify(
    path: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Look at every byte of a GGUF, and at its manifest if there is one beside it.

    path:     the file; of several shards any one, or the name that they were asked for by
    threads:  None takes one for each CPU
    progress: called with bytes done and bytes in all

    A file that cannot be read as a GGUF is a fault like others. Raises CheckpointError where
    reading fails on the way.
    """
    manifest, problems = _manifest(path)
    try:
        shards = open_gguf(first_file(path))
        sizes = [file.path.stat().st_size for file in shards.files]
    except (CheckpointError, OSError) as e:
        messages = e.messages if isinstance(e, CheckpointError) else (f"{path}: {e.strerror}",)
        faults = (*problems, *map(Fault, messages))
        return Verified((), 0, faults, (), (), ("blocks and checksums: the header cannot be read",))
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
        faults += manifest_faults(manifest, place_of(path).name, shards, sizes, found)
    faults += [*lint_faults(shards), *needed_faults(shards)]
    warnings = [text for file, size in pairs for text in structure_warnings(file, size)]
    warnings += lint_warnings(shards, found.zero)
    if manifest is not None:
        warnings += _other_names(manifest, shards)
    return Verified(
        tuple((file.path, size) for file, size in pairs),
        sum(len(file.tensors) for file in shards.files),
        tuple(faults),
        tuple(warnings),
        tuple(_checked(shards, manifest)),
        tuple(_unchecked(shards, manifest, problems)),
    )


def first_file(path: Path) -> Path:
    """Return the first shard where `path` is the name that shards were asked for by."""
    if not path.exists() and path.suffix == ".gguf":
        for found in sorted(path.parent.glob("*-00001-of-*.gguf")):
            if shard_names(found.name) and found.name.startswith(f"{path.stem}-00001-of-"):
                return found
    return path


def _manifest(path: Path) -> tuple[Manifest | None, list[Fault]]:
    """Return the manifest beside a file, or why it cannot be read."""
    place = place_of(path)
    if not place.exists():
        return None, []
    try:
        return read_manifest(place), []
    except ManifestError as e:
        return None, [Fault(message) for message in e.messages]


def _other_names(manifest: Manifest, shards: Shards) -> Iterator[str]:
    for file, entry in zip(shards.files, manifest.output.files, strict=False):
        if file.path.name != entry.name:
            yield f"{file.path}: its manifest calls it {entry.name}"


def _checked(shards: Shards, manifest: Manifest | None) -> Iterator[str]:
    n = sum(len(file.tensors) for file in shards.files)
    yield "structure: keys, tensor table, places, padding, sizes"
    yield f"blocks of {counted(n, 'tensor')}: scales that are numbers, codes that their types have"
    if manifest is not None:
        yield (
            f"manifest: sha256 of {counted(len(manifest.output.files), 'file')}, xxh64, type, shape"
            f" and place of {counted(len(manifest.tensors), 'tensor')}"
        )


def _unchecked(shards: Shards, manifest: Manifest | None, problems: list[Fault]) -> Iterator[str]:
    if manifest is None:
        why = "its manifest cannot be read" if problems else "it has no manifest"
        yield f"that no byte changed since it was made: {why}, and so no checksums"
    odd = sorted({t.type_name for _, t in shards.tensors()} - set(ALL | KEPT))
    if odd:
        yield f"blocks of {', '.join(odd)}"
    yield from needed_unchecked(shards)
