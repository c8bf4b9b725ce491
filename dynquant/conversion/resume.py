"""Where a conversion begins: anew, or where an earlier run of it was broken off.

What is believed after a crash, and why it may be:

1. The journal is locked, so that nobody else touches the files.
2. To begin anew, the journal is emptied and synced before the old `.part` files go: no record of
   old blocks is ever beside new files.
3. The files are made, their headers written and synced; then the journal gets its identity, and the
   folder is synced. A journal without identity, or without records, is worth nothing.
4. Blocks are written, the files synced, the journal appended to and synced (engine.py). A record
   that is whole tells of blocks that were safe before it.
5. When all is there and synced, COMPLETE is noted; only then do files get their names (output.py),
   and the journal goes last.

What a run finds of an earlier one is looked at all the same: headers and padding are compared, each
range of rows is read back and its checksum with it, since it has to be hashed anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dynquant.conversion.disk import sync_folder
from dynquant.conversion.identity import identity_of
from dynquant.conversion.jobs import Done
from dynquant.conversion.journal import Identity, Journal, refuse_changed
from dynquant.conversion.layout import shard_paths
from dynquant.conversion.output import PartFiles, check_output, part_path
from dynquant.conversion.work import Work
from dynquant.plan.plan import Plan


def begin(
    plan: Plan,
    out: Path,
    work: Work,
    parts: PartFiles,
    journal: Journal,
    *,
    force: bool,
    restart: bool,
) -> Mapping[int, Sequence[Done]]:
    """Make the files, or open those of an earlier run; return the rows that are there, by tensor.

    Raises ConvertError where an earlier run was of another conversion, and if the output cannot be
    written; what was there is left then, and nothing is added to it.
    """
    try:
        before, records = journal.read(anew=restart)
        identity = identity_of(plan, work)
        if before is not None and records and not restart:
            refuse_changed(journal.path, before, identity)
            is_complete = records.are_complete
            if parts.are_there(named=is_complete):
                if not is_complete:
                    check_output(plan, out, work, force=force)
                parts.open()
                if parts.have_between(work.layout):
                    return records.by_tensor([t.n_rows for t in work.tensors])
                parts.close()
        check_output(plan, out, work, force=force)
    except BaseException:
        if journal.is_new:
            journal.remove()
        raise
    try:
        journal.clear()
        for path in _old_parts(out, before):
            path.unlink(missing_ok=True)
        parts.make()
        for number, file in enumerate(work.layout.files):
            parts.write(number, file.header, 0)
        parts.sync()
        journal.begin(identity)
    except BaseException:
        parts.remove()
        journal.remove()
        raise
    sync_folder(out.parent)
    return {}


def _old_parts(out: Path, before: Identity | None) -> list[Path]:
    """Return the `.part` files of an earlier run, which may have cut its output otherwise."""
    count = before.get("shards") if before else None
    if not isinstance(count, int) or not 0 < count < 2**16:
        return []
    return [part_path(path) for path in shard_paths(out, count)]
