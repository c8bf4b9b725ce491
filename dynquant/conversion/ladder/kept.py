"""Outputs that an earlier run of the same ladder completed: they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dynquant.conversion.journal import journal_path
from dynquant.conversion.ladder.outputs import Output
from dynquant.conversion.manifest import manifest_path
from dynquant.conversion.result import Result
from dynquant.conversion.reuse.decide import Reuse, compare, hashed, kind_of_hashes, reuse_of
from dynquant.conversion.reuse.old import read_old
from dynquant.conversion.source_hashes import SourceHashes
from dynquant.conversion.work import Work
from dynquant.errors import ConvertError, ManifestError


def kept(
    outputs: Sequence[Output], whole: Work, threads: int
) -> tuple[list[Result | None], Mapping[int, str]]:
    """Return the result of each output that is complete already, and hashes of source files.

    whole: of all outputs; the hashes are by its numbers. They are computed only if there are
           outputs that may be complete

    Headers, padding, the manifest and the bytes of all tensors are compared with what a conversion
    would give. Raises CheckpointError if a source file cannot be read.
    """
    if not any(_may_be_complete(o) for o in outputs):
        return [None] * len(outputs), {}
    digests = hashed(whole, _kind(outputs), threads)
    sources = zip(whole.source_files, digests.sources(), strict=True)
    files = {file.path: source.content for file, source in sources}
    return [_result(o, files, threads) for o in outputs], digests.computed()


def _kind(outputs: Sequence[Output]) -> SourceHashes:
    """Return how the source files are hashed as the complete outputs record them."""
    for output in filter(_may_be_complete, outputs):
        with suppress(ConvertError, ManifestError):
            return kind_of_hashes(read_old(manifest_path(output.out)))
    return "auto"


def _may_be_complete(output: Output) -> bool:
    is_begun = journal_path(output.out).exists() or any(p.exists() for p in output.parts.parts)
    return not is_begun and all(
        path.is_file() for path in (*output.parts.paths, manifest_path(output.out))
    )


def _result(output: Output, files: Mapping[Path, str | None], threads: int) -> Result | None:
    """Return the result of a complete output, as its manifest records it."""
    if not _may_be_complete(output) or not output.parts.are_there(named=True):
        return None
    try:
        old = read_old(manifest_path(output.out))
    except (ConvertError, ManifestError):
        return None
    if [file.name for file in old.files] != [path.name for path in output.parts.paths]:
        return None
    taken, encoded = compare(output.plan, output.work, old, files)
    if encoded or not _has_headers(output) or old.damaged(taken.values(), threads):
        return None
    reuse: Reuse = reuse_of(output.work, old, taken, {}, {})
    return Result(
        plan=output.plan,
        paths=output.parts.paths,
        file_bytes=output.parts.sizes,
        sha256=tuple(file.sha256 for file in old.manifest.output.files),
        xxh64={output.work.tensors[n].name: t.xxh64 for n, t in taken.items()},
        errors=reuse.errors(),
        resumed_bytes=output.work.tensor_bytes,
        manifest=manifest_path(output.out),
        gains=reuse.gains(),
    )


def _has_headers(output: Output) -> bool:
    output.parts.open()
    try:
        return output.parts.have_between(output.work.layout)
    finally:
        output.parts.close()
