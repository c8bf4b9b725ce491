"""The outputs of a ladder: checked together before the first is written, then begun together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from dynquant.conversion.disk import allocated_bytes, free_bytes, full
from dynquant.conversion.identity import identity_of
from dynquant.conversion.jobs import Done
from dynquant.conversion.journal import Journal, journal_path, refuse_changed
from dynquant.conversion.output import (
    PartFiles,
    check_output,
    files_read,
    inode_of,
    part_path,
    places_of,
)
from dynquant.conversion.resume import begin
from dynquant.conversion.work import Work
from dynquant.errors import ConvertError, Problems
from dynquant.plan.plan import Plan


@dataclass(eq=False)
class Output:
    """An output that is being written.

    journal, done: once it is begun
    """

    plan: Plan
    out: Path
    work: Work
    parts: PartFiles = field(init=False)
    journal: Journal | None = None
    done: Mapping[int, Sequence[Done]] = field(default_factory=dict[int, Sequence[Done]])

    def __post_init__(self) -> None:
        """Name its files."""
        layout = self.work.layout
        self.parts = PartFiles(layout.paths(self.out), [f.file_bytes for f in layout.files])

    def close(self) -> None:
        """Close its files, which stay as they are."""
        self.parts.close()
        if self.journal is not None:
            self.journal.close()


def begin_all(outputs: Sequence[Output], *, force: bool, restart: bool) -> None:
    """Create the files of all outputs, or open those of earlier runs.

    Raises ConvertError, with all reasons, if one of them cannot be written; nothing is created
    then.
    """
    check_all(outputs, force=force, restart=restart)
    begun: list[Output] = []
    try:
        for output in outputs:
            if output.journal is None:
                output.journal = Journal(journal_path(output.out))
            output.done = begin(
                output.plan,
                output.out,
                output.work,
                output.parts,
                output.journal,
                force=force,
                restart=restart,
            )
            begun.append(output)
    except BaseException:
        for output in begun:
            if output.journal is not None and not output.done:
                output.parts.remove()
                output.journal.remove()
        raise


def check_all(outputs: Sequence[Output], *, force: bool, restart: bool) -> None:
    """Raise ConvertError, with all reasons, if one of the outputs cannot be written.

    Journals of earlier runs are opened and locked; nothing is created.
    """
    problems = Problems()
    problems.add(*_shared_names(outputs), *_inputs_of_others(outputs))
    complete: list[Output] = []
    for output in outputs:
        if not problems.attempt(lambda o=output: _is_complete(o, restart=restart), ConvertError):
            problems.attempt(
                lambda o=output: check_output(o.plan, o.out, o.work, force=force), ConvertError
            )
        else:
            complete.append(output)
    problems.add(*_full_disks([o for o in outputs if o not in complete]))
    problems.raise_any(ConvertError)


def _is_complete(output: Output, *, restart: bool) -> bool:
    """Whether an earlier run wrote all rows, so that only the names of files are left.

    Raises ConvertError if it was another conversion, or is still running.
    """
    if not journal_path(output.out).exists():
        return False
    output.journal = Journal(journal_path(output.out))
    before, records = output.journal.read(discard=restart)
    if before is None or not records or restart:
        return False
    refuse_changed(output.journal.path, before, identity_of(output.plan, output.work))
    return records.are_complete


def _shared_names(outputs: Sequence[Output]) -> list[str]:
    """Return a problem for each two outputs that would use one name."""
    places = [(o, {p.parent.resolve() / p.name for p in places_of(o.work, o.out)}) for o in outputs]
    return [
        f"{min(shared)}: two outputs, {one.out.name} by {one.plan.recipe.name} and"
        f" {other.out.name} by {other.plan.recipe.name}, would be written there; give them"
        " different names"
        for (one, its), (other, others) in combinations(places, 2)
        if (shared := its & others)
    ]


def _inputs_of_others(outputs: Sequence[Output]) -> list[str]:
    """Return a problem for each output that another one is made of."""
    reads = [files_read(o.plan, o.work) for o in outputs]
    found = [
        f"{path}: is {what}; name another output"
        for output in outputs
        for path in output.parts.paths
        for read in reads
        if (what := read.get(inode_of(path)))
    ]
    return [*dict.fromkeys(found)]


def _full_disks(outputs: Sequence[Output]) -> list[str]:
    """Return a problem for each disk that cannot hold all outputs that are for it."""
    needed: Counter[int] = Counter()
    free: dict[int, int] = {}
    places: dict[int, Path] = {}
    for output in outputs:
        folder = output.out.parent
        if not folder.is_dir():
            continue
        disk = folder.stat().st_dev
        places.setdefault(disk, folder)
        free.setdefault(disk, free_bytes(folder))
        free[disk] += sum(allocated_bytes(part_path(p)) for p in output.parts.paths)
        needed[disk] += output.work.layout.n_bytes
    return [full(places[disk], n, free[disk]) for disk, n in needed.items() if n > free[disk]]
