"""Writes one part of a conversion: its rows, with a journal; resumable like a whole conversion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from dynquant.conversion.disk import sync_folder, write_whole
from dynquant.conversion.engine import Engine, OneFile, Progress
from dynquant.conversion.identity import identity_of, refuse_written, versions_of
from dynquant.conversion.jobs import Done, Job, jobs
from dynquant.conversion.journal import Journal, journal_path, refuse_changed
from dynquant.conversion.output import check_output, part_path
from dynquant.conversion.pagecache import PageCache
from dynquant.conversion.parts.files import (
    RowsFile,
    SharedFiles,
    journal_of,
    report_of,
    rows_of,
)
from dynquant.conversion.parts.share import Part, owned_files, scope_of
from dynquant.conversion.remote_sources import copies_beside, reading_ahead, sources_path
from dynquant.conversion.source_hashes import SourceDigests, SourceHashes
from dynquant.conversion.stages import EncodeStage, Sink, SourceStage
from dynquant.conversion.work import Work, work_of
from dynquant.conversion.write import SYNC_SECONDS, chunk_of, default_threads
from dynquant.errors import ConvertError, PlanError
from dynquant.part_cache import release_parts
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.encoder import CORE, Encoded, Encoder
from dynquant.untrusted import parse_json

_VERSION = 1


@dataclass(frozen=True)
class PartResult:
    """A part that is complete.

    n_bytes:       of its rows in the output
    resumed_bytes: of them, those that an earlier run had written
    path:          of its separate file; None if it wrote into the shared files
    """

    part: Part
    n_bytes: int
    n_weights: int
    resumed_bytes: int
    path: Path | None


@dataclass(frozen=True)
class Report:
    """What a part leaves for the join, besides its rows.

    identity: of the conversion
    sources:  the hashes of source files, with their kinds, by their number
    """

    identity: Mapping[str, Any]
    sources: Mapping[int, str]


class _Unhashed:
    """Stands for the digests of a whole output, which only the join can compute."""

    def __init__(self) -> None:
        self.reached = 0

    def add(self, job: Job, encoded: Encoded) -> None:
        """Note the tensor."""
        del encoded
        self.reached = max(self.reached, job.tensor.number)

    def stop(self) -> None:
        """Do nothing: no thread waits."""


def convert_part(
    plan: Plan,
    out: Path,
    part: Part,
    *,
    separate: bool = False,
    threads: int | None = None,
    force: bool = False,
    restart: bool = False,
    source_hashes: SourceHashes = "auto",
    progress: Callable[[Progress], None] | None = None,
    encoder: Encoder = CORE,
    chunk_bytes: int | None = None,
    sync_seconds: float = SYNC_SECONDS,
) -> PartResult:
    """Write the rows of one part; `join_parts` makes the output of all of them.

    separate: write into a file that no other part uses, for machines without a shared disk
    force:    the join will replace an existing output
    source_hashes: hash the source files whose first rows are in this part
    The others are as in `convert_plan`, which says what is raised.

    Parts may run on any machines, at the same time or one after the other, and again after any
    failure. Rows that are recorded in the part's journal are read back and not encoded again.
    """
    threads = default_threads() if threads is None else threads
    PlanError.raise_any((*plan.missing, *plan.refusals))
    if threads < 1:
        raise ConvertError(f"threads is {threads}; at least 1 is needed")
    codec.active_isa()
    work = work_of(plan)
    scope = scope_of(work, part)
    if not out.parent.is_dir():
        check_output(plan, out, work, force=force)  # raises, with what to do
    if journal_path(out).exists():
        raise ConvertError(
            f"{journal_path(out)}: a conversion of the whole output, or a join of its parts, was"
            " interrupted there; finish it with the same command, or remove this file"
        )
    versions = versions_of(work)
    journal = Journal(journal_of(out, part))
    engine: Engine[Job] | None = None
    files: SharedFiles | RowsFile | None = None
    try:
        identity = identity_of(plan, work, is_portable=True) | _kind(part, separate=separate)
        done, is_complete = _begun(journal, identity, work, out, part, restart=restart)
        if not is_complete and not done and not part_path(out).exists():
            check_output(plan, out, work, force=force)
        files = RowsFile(rows_of(out, part), scope) if separate else SharedFiles(out, work.layout)
        if not done:
            files.sync()
            journal.begin(identity)
            sync_folder(out.parent)
        owned = owned_files(scope)
        first = next((t.number for t, _ in scope.tensors), None)
        sources = SourceDigests(work, source_hashes, first, only=owned)
        sink = Sink(_Unhashed(), files, journal, PageCache(work, sources))
        todo = jobs(scope, chunk_bytes or chunk_of(work, encoder), done)
        copies = sources_path(journal_of(out, part).with_suffix(""))
        with copies_beside(work, copies), reading_ahead(work, todo) as ahead:
            source = SourceStage(work, sources, ahead)
            engine = Engine([scope], ahead or todo, OneFile(source, EncodeStage(encoder), sink))
            engine.run(threads, sync_seconds, progress)
        refuse_written(versions, versions_of(work))
        files.sync()
        _write_report(report_of(out, part), Report(identity, sources.computed()))
        sync_folder(out.parent)
        return PartResult(
            part,
            scope.n_bytes,
            scope.n_weights,
            engine.resumed_bytes,
            rows_of(out, part) if separate else None,
        )
    except BaseException:
        if journal.is_new and files is None:
            journal.remove()
        raise
    finally:
        if engine is None or not engine.is_alive:
            if files is not None:
                files.close()
            journal.close()
        release_parts()


def _kind(part: Part, *, separate: bool) -> dict[str, Any]:
    return {"part": str(part), "written to": "a separate file" if separate else "shared files"}


def _begun(
    journal: Journal,
    identity: Mapping[str, Any],
    work: Work,
    out: Path,
    part: Part,
    *,
    restart: bool,
) -> tuple[Mapping[int, Sequence[Done]], bool]:
    """Return the rows that an earlier run of this part wrote, and whether it finished.

    Raises ConvertError if it was a part of another conversion.
    """
    before, records = journal.read(discard=restart)
    report = report_of(out, part)
    if before is None or not records or restart:
        report.unlink(missing_ok=True)
        return {}, False
    refuse_changed(journal.path, dict(before), dict(identity))
    return records.by_tensor([t.n_rows for t in work.tensors]), report.exists()


def _write_report(path: Path, report: Report) -> None:
    text = json.dumps({"dynquant part": _VERSION} | asdict(report), indent=1)
    temporary = path.with_name(f"{path.name}.part")
    write_whole(temporary, text + "\n")
    temporary.replace(path)


def read_report(path: Path) -> Report:
    """Read what a part left; raise ConvertError if it is damaged."""
    try:
        found: object = parse_json(path.read_text("utf-8"))
        if isinstance(found, dict):
            entries = cast("dict[str, Any]", found)
            identity, sources = entries.get("identity"), entries.get("sources")
            if isinstance(identity, dict) and isinstance(sources, dict):
                hashes = cast("dict[str, str]", sources)
                return Report(
                    cast("dict[str, Any]", identity), {int(n): h for n, h in hashes.items()}
                )
    except (OSError, ValueError) as e:
        raise ConvertError(f"{path}: cannot be read ({e}); run the part again") from e
    raise ConvertError(f"{path}: is not the report of a part; run the part again")
