"""Makes an output of its parts: gathers their rows, then finishes as a conversion does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from dynquant.conversion.disk import sync_folder
from dynquant.conversion.engine import Progress, reading_back
from dynquant.conversion.identity import identity_of
from dynquant.conversion.jobs import Done
from dynquant.conversion.journal import Identity, Journal, journal_path, refuse_changed
from dynquant.conversion.output import PartFiles, check_output, part_path
from dynquant.conversion.parts.files import (
    RowsFile,
    journal_of,
    parts_beside,
    report_of,
    rows_of,
)
from dynquant.conversion.parts.run import read_report
from dynquant.conversion.parts.share import Part, scope_of
from dynquant.conversion.result import Result
from dynquant.conversion.second_look import SAMPLES
from dynquant.conversion.source_hashes import SourceHashes
from dynquant.conversion.work import Work, work_of
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError, PlanError, Problems
from dynquant.plan.plan import Plan

_OF_PART = ("part", "written to")
"""What the identity of a part has besides that of the conversion."""


@dataclass(frozen=True)
class _Found:
    """A part beside the output.

    done: the rows that its journal records
    """

    part: Part
    done: Sequence[Done]
    is_separate: bool


def join_parts(
    plan: Plan,
    out: Path,
    *,
    threads: int | None = None,
    force: bool = False,
    manifest: SourceHashes | None = None,
    verify_sample: int = SAMPLES,
    progress: Callable[[Progress], None] | None = None,
) -> Result | None:
    """Make the output of all parts beside it, and remove their files.

    Every row is read back and compared with its checksum; damaged rows are encoded again. Hashes
    of source files that the parts computed are taken. The arguments are those of `convert_plan`.

    Returns None if there are no parts, because an earlier join has finished this output. Raises
    ConvertError with all parts that are missing, incomplete, or of another conversion, and what
    `convert_plan` raises. An interrupted join continues with the same command. The rows of parts
    are no rows of an earlier run: progress and result have no resumed bytes.
    """
    PlanError.raise_any((*plan.missing, *plan.refusals))
    work = work_of(plan)
    if not _is_handed_over(out):
        if not parts_beside(out, ".journal") and _is_finished(work, out):
            _remove(parts_beside(out, ".json"), out)
            return None
        _hand_over(plan, work, out, _gathered(plan, work, out), force=force)
    # From here on, the journal of the output has what those of the parts had.
    for part in parts_beside(out, ".journal"):
        journal_of(out, part).unlink(missing_ok=True)
        rows_of(out, part).unlink(missing_ok=True)
    reports = parts_beside(out, ".json")
    hashes: dict[int, str] = {}
    for part in reports:
        hashes |= read_report(report_of(out, part)).sources
    result = convert_plan(
        plan,
        out,
        threads=threads,
        force=force,
        manifest=manifest,
        verify_sample=verify_sample,
        progress=reading_back(progress) if progress else None,
        known_sources=hashes,
    )
    _remove(reports, out)
    return replace(result, resumed_bytes=0)


def _remove(parts: Sequence[Part], out: Path) -> None:
    for part in parts:
        for path in (rows_of(out, part), report_of(out, part)):
            path.unlink(missing_ok=True)
    sync_folder(out.parent)


def _is_finished(work: Work, out: Path) -> bool:
    """Whether the output is there, with this plan's headers."""
    layout = work.layout
    files = PartFiles(layout.paths(out), [file.file_bytes for file in layout.files])
    if any(map(Path.exists, files.parts)) or not files.are_there(named=True):
        return False
    try:
        files.open()
        return files.have_between(layout)
    finally:
        files.close()


def _is_handed_over(out: Path) -> bool:
    """Whether an earlier join gathered all rows, and was interrupted later."""
    if not journal_path(out).exists():
        return False
    journal = Journal(journal_path(out))
    try:
        before, records = journal.read()
    finally:
        journal.close()
    return before is not None and len(records) > 0


def _gathered(plan: Plan, work: Work, out: Path) -> list[_Found]:
    """Return the parts; raise ConvertError if rows are missing or a part is another's."""
    identity = identity_of(plan, work, is_portable=True)
    problems = Problems()
    found: list[_Found] = []
    for part in parts_beside(out, ".journal"):
        one = problems.attempt(lambda part=part: _read(work, out, part, identity), ConvertError)
        if one is not None:
            found.append(one)
    problems.raise_any(ConvertError)
    if not found:
        raise ConvertError(
            f"{out}: has no parts beside it; write them first with `dynquant convert --part 1/N`"
        )
    ConvertError.raise_any(_missing(work, out, found))
    return found


def _read(work: Work, out: Path, part: Part, identity: Identity) -> _Found:
    """Read a part's journal and report; raise ConvertError if it is of another conversion."""
    journal = Journal(journal_of(out, part))
    try:
        before, records = journal.read()
    finally:
        journal.close()
    if before is None:
        return _Found(part, (), False)
    own = {name: value for name, value in before.items() if name not in _OF_PART}
    refuse_changed(journal.path, own, identity)
    rows = records.by_tensor([t.n_rows for t in work.tensors])
    done = [d for number in rows for d in rows[number]]
    return _Found(part, done, before.get("written to") != "shared files")


def _missing(work: Work, out: Path, found: Sequence[_Found]) -> Iterator[str]:
    """Yield a message for each part without all of its rows, unless other parts have them."""
    have: dict[int, list[tuple[int, int]]] = {}
    for one in found:
        for done in one.done:
            have.setdefault(done.tensor, []).append((done.start, done.stop))
    if all(_covers(have.get(t.number, []), t.n_rows) for t in work.tensors):
        return
    count = max(one.part.count for one in found)
    known = {one.part.number: one for one in found if one.part.count == count}
    for number in range(1, count + 1):
        part = Part(number, count)
        scope = scope_of(work, part)
        bytes_there = sum(
            (d.stop - d.start) * work.tensors[d.tensor].row_size
            for d in (known[number].done if number in known else ())
        )
        if bytes_there < scope.n_bytes:
            share = bytes_there / scope.n_bytes
            state = f"has {share:.0%} of its rows" if number in known else "is missing"
            yield f"{out}: part {part} {state}; run `dynquant convert … --part {part}` (again)"


def _covers(ranges: Sequence[tuple[int, int]], n_rows: int) -> bool:
    end = 0
    for start, stop in sorted(ranges):
        if start > end:
            return False
        end = max(end, stop)
    return end >= n_rows


def _hand_over(plan: Plan, work: Work, out: Path, found: Sequence[_Found], *, force: bool) -> None:
    """Give the rows of parts to the output's journal, from which a conversion resumes."""
    layout = work.layout
    files = PartFiles(layout.paths(out), [file.file_bytes for file in layout.files])
    journal = Journal(journal_path(out))
    try:
        check_output(plan, out, work, force=force)
        shares_files = any(not one.is_separate for one in found)
        if shares_files and files.are_there(named=False):
            files.open()
        elif shares_files:
            raise ConvertError(
                f"{part_path(out)}: is missing or has another size; write the parts again"
                " (--restart)"
            )
        else:
            files.make()
        for number, file in enumerate(layout.files):
            for position, content in file.between():
                files.write(number, content, position)
        done: list[Done] = []
        for one in found:
            done += _copied(work, out, one, files) if one.is_separate else one.done
        files.sync()
        journal.begin(identity_of(plan, work), done)
        sync_folder(out.parent)
    except BaseException:
        if journal.is_new:
            journal.remove()
        raise
    finally:
        files.close()
        journal.close()


def _copied(work: Work, out: Path, one: _Found, files: PartFiles) -> Iterator[Done]:
    """Copy the rows of a part's own file into the output; yield those that are undamaged."""
    rows = RowsFile(rows_of(out, one.part), scope_of(work, one.part))
    try:
        for done in one.done:
            tensor = work.tensors[done.tensor]
            blocks = np.empty((done.stop - done.start) * tensor.row_size, np.uint8)
            position = tensor.position + done.start * tensor.row_size
            rows.read(tensor.file, blocks.data, position)
            if xxhash.xxh3_64_intdigest(blocks.data) == done.checksum:
                files.write(tensor.file, blocks.data, position)
                yield done
    finally:
        rows.close()
