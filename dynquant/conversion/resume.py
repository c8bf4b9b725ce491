"""Decides where a conversion starts: from nothing, or where an earlier run was interrupted.

What can be trusted after a crash, and why:

1. The journal is locked, so that no other run changes the files.
2. To start over, the journal is erased and synced before the old `.part` files are removed: a
   record of old blocks never stands beside new files.
3. The files are created, their headers written and synced; then the journal gets its identity, and
   the folder is synced. A journal without identity, or without records, is ignored.
4. Blocks are written, the files synced, the journal appended to and synced (engine.py). A whole
   record describes blocks that were safe before it was written.
5. When everything is written and synced, COMPLETE is recorded; only then are files renamed
   (output.py), and the journal is removed last.

The files of an earlier run are checked in any case: headers and padding are compared, and each
range of rows is read back and compared with its checksum, since it has to be hashed anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Mapping[int, Sequence[Done]]:
    """Create the files, or open those of an earlier run; return the rows that are done, by tensor.

    more: what the identity of the conversion has besides the plan and the model

    Raises ConvertError if an earlier run was another conversion, or if the output cannot be
    written; existing files are left unchanged then, and nothing is added.
    """
    try:
        before, records = journal.read(discard=restart)
        identity = identity_of(plan, work) | dict(more)
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
    """Return the `.part` files of an earlier run, which may have had other shards."""
    count = before.get("shards") if before else None
    if not isinstance(count, int) or not 0 < count < 2**16:
        return []
    return [part_path(path) for path in shard_paths(out, count)]
