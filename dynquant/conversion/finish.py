"""The end of a conversion: its result, its manifest, and the final names of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dynquant.conversion.digest import Digests
from dynquant.conversion.disk import sync_folder
from dynquant.conversion.journal import Journal
from dynquant.conversion.manifest import Source, manifest_path, manifest_text
from dynquant.conversion.output import PartFiles
from dynquant.conversion.provenance import manifest_of
from dynquant.conversion.records import COMPLETE
from dynquant.conversion.result import Result
from dynquant.conversion.reuse.decide import Reuse
from dynquant.conversion.work import Work
from dynquant.feedback.decided import TensorGain
from dynquant.plan.plan import Plan


def result_of(
    plan: Plan,
    work: Work,
    parts: PartFiles,
    digests: Digests,
    *,
    manifest: Path | None,
    resumed_bytes: int,
    rounded: Mapping[str, int],
    reuse: Reuse | None = None,
) -> Result:
    """Return the result of a conversion whose rows are all written.

    manifest: where it will be written; None for none
    rounded:  weights of tensors on a grid that differ by the rounding of a scale
    reuse:    tensors that were copied from an earlier output

    Raises ConvertError if copied tensors changed since they were checked.
    """
    writing = reuse.work if reuse else work
    measured = zip(writing.tensors, digests.sums(), strict=True)
    errors = {t.name: sums.figures() for t, sums in measured if not t.keeps_weights}
    xxh64 = dict(zip((t.name for t in work.tensors), digests.tensors(), strict=True))
    if reuse:
        reuse.refuse_changed(xxh64)
        errors |= reuse.errors()
    return Result(
        plan=plan,
        paths=parts.paths,
        file_bytes=parts.sizes,
        sha256=tuple(digests.files()),
        xxh64=xxh64,
        errors=errors,
        resumed_bytes=resumed_bytes,
        manifest=manifest,
        rounded={name: n for name, n in rounded.items() if n},
        gains=gains_of(writing) | (reuse.gains() if reuse else {}),
        reused=reuse.reused if reuse else None,
    )


def record_complete(parts: PartFiles, journal: Journal) -> None:
    """Record that all rows are on the disk; only renaming is left."""
    parts.sync()
    journal.add([COMPLETE])


def rename(
    result: Result, out: Path, work: Work, parts: PartFiles, sources: Sequence[Source]
) -> None:
    """Give complete files their final names, and write the manifest if the result has one.

    sources: the files that tensors were read from
    """
    text = result.manifest and manifest_text(manifest_of(result, work, sources))
    parts.finish(manifest_path(out), text)


def end(journal: Journal, out: Path) -> None:
    """Remove the journal of files that have their final names."""
    journal.remove()
    sync_folder(out.parent)


def gains_of(work: Work) -> dict[str, TensorGain]:
    """Return what error feedback gained, by tensor; of a resumed run, too."""
    return {
        t.name: work.decisions.of_tensor(t.fed)
        for t in work.tensors
        if t.fed is not None and work.decisions is not None
    }
