"""Rows in the order of the source files, for copies that are deleted after use.

An output has its tensors in another order than a checkpoint: the experts of one layer may lie in
four files. Rows are independent, and a journal records them in any order. So each copy is used for
all rows that it has, hashed and deleted before the next one is downloaded. Rows that are made of
parts in two files come with the later one; what the earlier one has of them is requested by range.
Then the conversion continues in the order of the output, as if it had been interrupted: it reads
the rows back, and hashes them.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path

from dynquant.conversion.disk import allocated_bytes, free_bytes
from dynquant.conversion.engine import Counts, Engine
from dynquant.conversion.jobs import Done, Job, jobs_of
from dynquant.conversion.journal import Journal
from dynquant.conversion.output import PartFiles
from dynquant.conversion.pagecache import is_scarce
from dynquant.conversion.remote_sources import copies_beside
from dynquant.conversion.scope import Scope
from dynquant.conversion.source_hashes import PIECE, SourceDigests
from dynquant.conversion.stages import (
    EncodeStage,
    Scratch,
    Sink,
    batch_of,
    read_rows,
)
from dynquant.conversion.work import TensorWork, Work
from dynquant.errors import ConvertError
from dynquant.figures import size_text
from dynquant.quants.encoder import Encoded
from dynquant.tensors import ShardFile, TensorSource, parts_of
from dynquant.transforms import Stack


@dataclass(frozen=True)
class Unit:
    """Rows that need the same source files.

    file: the number of the last of these in `Work.source_files`, in the order of their names; None
          if the rows are not read from one
    """

    tensor: TensorWork
    rows: range
    file: int | None


def units(work: Work) -> list[Unit]:
    """Return all rows in the order of the files that they need last, by name."""
    numbers = {file.path: number for number, file in enumerate(work.source_files)}
    by_name = sorted(numbers, key=lambda path: path.name)
    place = {path: at for at, path in enumerate(by_name)}
    found = [
        (at, Unit(tensor, rows, None if at is None else numbers[by_name[at]]))
        for tensor in work.tensors
        for rows, at in _turns(tensor, place)
    ]
    return [unit for _, unit in sorted(found, key=lambda one: -1 if one[0] is None else one[0])]


def _turns(tensor: TensorWork, place: Mapping[Path, int]) -> Iterator[tuple[range, int | None]]:
    """Yield rows with the place of the last file that they need: of a stack, matrices that are
    alike; else all.
    """
    source = tensor.source
    parts: tuple[TensorSource, ...] = source.parts if isinstance(source, Stack) else (source,)
    n = tensor.n_rows // len(parts)
    start = 0
    for at, alike in groupby(parts, lambda part: _last(part, place)):
        stop = start + n * sum(1 for _ in alike)
        yield range(start, stop), at
        start = stop


def _last(source: TensorSource, place: Mapping[Path, int]) -> int | None:
    """Return the place of the last file that a source reads; files of other models have none."""
    readers = parts_of(source, ShardFile)
    return max((place[r.path] for r in readers if r.path in place), default=None)


def needed_files(order: Sequence[Unit], done: Mapping[int, Sequence[Done]]) -> set[int]:
    """Return the numbers of the files that are to be copied for rows that are not done."""
    return {unit.file for unit in order if unit.file is not None and _is_left(unit, done)}


def _is_left(unit: Unit, done: Mapping[int, Sequence[Done]]) -> bool:
    rows = unit.rows
    earlier = (d for d in done.get(unit.tensor.number, ()) if rows.start <= d.start)
    return sum(d.stop - d.start for d in earlier if d.stop <= rows.stop) < len(rows)


class _Copies:
    """The copies that rows are still to be read from; it stands for the digests of the output.

    Callable from several threads at once.
    """

    def __init__(self, work: Work, order: Sequence[Unit], sources: SourceDigests) -> None:
        self.reached = 0
        self.is_scarce = is_scarce(sources)
        self._work = work
        self._sources = sources
        self._units: dict[int, list[Unit]] = {}
        for unit in order:
            self._units.setdefault(unit.tensor.number, []).append(unit)
        for of_tensor in self._units.values():
            of_tensor.sort(key=lambda unit: unit.rows.start)
        self._left: Counter[int] = Counter()
        for unit in order:
            if unit.file is not None:
                self._left[unit.file] += len(unit.rows)
        self._change = threading.Condition()
        self._is_stopped = False
        self._scratch = Scratch()

    def _file_of(self, job: Job) -> int | None:
        of_tensor = self._units[job.tensor.number]
        at = bisect_right(of_tensor, job.start, key=lambda unit: unit.rows.start) - 1
        return of_tensor[at].file

    def arrive(self, job: Job) -> bool:
        """Wait until a job's file is the first one that is left, or is not copied.

        Returns whether files before it can be dropped.
        """
        file = self._file_of(job)
        with self._change:
            while not self._is_stopped and any(self._left[f] for f in self._before(file)):
                self._change.wait()
            return any(True for _ in self._before(file))

    def _before(self, file: int | None) -> Iterator[int]:
        """Yield the files that come before one and were not dropped."""
        return takewhile(lambda other: other != file, self._left if file in self._left else ())

    def count(self, job: Job) -> None:
        """Note that no more rows of a job will be read."""
        file = self._file_of(job)
        if file is not None:
            with self._change:
                self._left[file] -= job.n_rows
                self._change.notify_all()

    def add(self, job: Job, encoded: Encoded) -> None:
        """Note a job that is written."""
        del encoded
        self.count(job)

    def stop(self) -> None:
        """Wake all waiting threads; no more rows will be written."""
        with self._change:
            self._is_stopped = True
            self._change.notify_all()

    def drop_before(self, tensor: int) -> None:
        """Hash and forget the files of which no more rows will be read."""
        del tensor
        with self._change:
            ready = [number for number, n_rows in self._left.items() if not n_rows]
        for number in ready:
            self._sources.hash_whole(number, self._scratch(PIECE))
            for reader in self._work.source_files[number].readers:
                reader.forget()
            with self._change:
                del self._left[number]


class _InFileOrder:
    """The way of a job through the stages; rows that are done already are not looked at."""

    def __init__(self, work: Work, encode: EncodeStage, sink: Sink, copies: _Copies) -> None:
        self._work = work
        self._encode = encode
        self._sink = sink
        self._copies = copies
        self._saving = threading.Lock()

    def take(
        self, work: Job, scratch: Scratch, is_stopped: Callable[[], bool], count: Counts
    ) -> None:
        """Encode and write the rows of a job, when the copies before its own are not needed."""
        started = time.monotonic()
        if self._copies.arrive(work):
            self.save()
        if is_stopped():
            return
        if work.done is None:
            feedback = self._work.feedback_of(work.tensor, work.matrix)
            batch = batch_of(work, read_rows(work, scratch), feedback)
            self._sink.write(work, encoded := self._encode.encode(work, batch))
            self._copies.add(work, encoded)
        else:
            self._copies.count(work)
        count(work, time.monotonic() - started, is_resumed=work.done is not None)

    def finish(self, scratch: Scratch, is_stopped: Callable[[], bool]) -> None:
        """Do nothing: files are hashed when their last row was read."""

    def save(self) -> None:
        """Record which rows are safe, and delete the copies that are not needed any more."""
        with self._saving:
            self._sink.save()

    def stop(self) -> None:
        """Wake waiting threads."""
        self._copies.stop()


def _check_room(work: Work, folder: Path, needed: Collection[int]) -> None:
    """Raise ConvertError if the disk has no room for a copy; that of the output is reserved."""
    largest = max((work.source_files[number].stored.size() for number in needed), default=0)
    there = folder.rglob("*") if folder.is_dir() else ()
    free = free_bytes(folder.parent) + sum(allocated_bytes(path) for path in there)
    if free < largest:
        raise ConvertError(
            f"{folder}: a copy of a source file takes up to {size_text(largest)} besides the"
            f" output, but the disk has {size_text(free)} free; free some space, or use"
            " --stream, which stores no copy"
        )


@contextmanager
def engine_in_file_order(
    work: Work,
    folder: Path,
    files: PartFiles,
    journal: Journal,
    done: Mapping[int, Sequence[Done]],
    sources: SourceDigests,
    encode: EncodeStage,
    chunk_bytes: int,
) -> Generator[Engine[Job]]:
    """Provide an engine that writes all rows that are not done.

    folder: of the copies; it is removed at the end
    The others are as in `convert_plan`.

    Raises ConvertError if the disk has no room for a copy; without rows that are done, the files
    and the journal are removed.
    """
    order = units(work)
    needed = needed_files(order, done)
    try:
        _check_room(work, folder, needed)
    except ConvertError:
        if not done:
            files.remove()
            journal.remove()
        raise
    copies = _Copies(work, order, sources)
    todo = jobs_of(((unit.tensor, unit.rows) for unit in order), chunk_bytes, done)
    with copies_beside(work, folder, needed):
        sink = Sink(copies, files, journal, copies)
        route = _InFileOrder(work, encode, sink, copies)
        yield Engine([Scope.whole(work)], todo, route)
