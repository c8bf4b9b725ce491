"""A disk that loses power keeps what was synced: everything that is believed must have been.

The oracle is a conversion that nothing disturbed; crashes.Disk makes what a disk would hold.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crashes import QUICK, Disk, gone_on, held, looks_whole, made, restored, sharded_plan

from dynquant.conversion.layout import FileLayout, lay_out
from dynquant.conversion.records import COMPLETE
from dynquant.conversion.write import convert_plan
from dynquant.plan.plan import Plan, TensorPlan

Content = dict[str, bytes]

RECORD = struct.Struct("<IQQQ5dI")
"""A record of the journal, as journal.py describes it."""

JOURNAL = "x.gguf.journal"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return sharded_plan()


@pytest.fixture(scope="module")
def expected(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Content:
    return made(plan, tmp_path_factory.mktemp("power") / "whole")


@pytest.fixture(autouse=True)
def quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the disk is what the tests say: nothing waits for the real one."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def recorded(plan: Plan, folder: Path, **options: Any) -> Disk:
    disk = Disk(folder)
    with disk.recorded():
        convert_plan(plan, folder / "x.gguf", **(QUICK | options))
    return disk


def some(disk: Disk, n: int) -> list[int]:
    """Moments of a run: those at both ends, and about n of the rest."""
    length = len(disk.log)
    return sorted({*range(12), *range(length - 16, length + 1), *range(0, length, length // n)})


def losses(disk: Disk, n: int, folder: Path) -> Iterator[Path]:
    """The folder after power losses: all that was not synced is lost, or nothing, or some."""
    for moment in some(disk, n):
        for lost in (1.0, 0.0, 0.5):
            yield restored(folder, disk.after(moment, random.Random(moment), lost))


def ended(plan: Plan, folder: Path, expected: Content) -> None:
    """Nothing in a folder looks complete and is not; the next run completes it, and only that."""
    assert not looks_whole(folder, expected) or held(folder).items() >= expected.items()
    if held(folder) != expected:
        gone_on(plan, folder)
    assert held(folder) == expected


@pytest.mark.slow
def test_a_power_loss_takes_nothing_that_is_believed(
    plan: Plan, expected: Content, tmp_path: Path
) -> None:
    disk = recorded(plan, restored(tmp_path / "run", {}))
    for folder in losses(disk, 12, tmp_path / "lost"):
        ended(plan, folder, expected)


def broken_off(plan: Plan, folder: Path, share: float = 0.6) -> Content:
    """What is left of a run that lost power after a share of its work."""
    disk = recorded(plan, restored(folder, {}))
    last = max(i for i, (call, *_) in enumerate(disk.log) if call == "write")
    return disk.after(round(last * share), random.Random(1), 0.5)


@pytest.mark.slow
def test_a_power_loss_after_a_power_loss_takes_nothing_that_is_believed(
    plan: Plan, expected: Content, tmp_path: Path
) -> None:
    left = broken_off(plan, tmp_path / "first")
    disk = recorded(plan, restored(tmp_path / "second", left))
    for folder in losses(disk, 6, tmp_path / "lost"):
        ended(plan, folder, expected)


@pytest.mark.slow
def test_a_power_loss_while_it_begins_anew_leaves_no_header_unwritten(
    plan: Plan, expected: Content, tmp_path: Path
) -> None:
    left = broken_off(plan, tmp_path / "first", 1.0)
    disk = recorded(plan, restored(tmp_path / "second", left), restart=True)
    for folder in losses(disk, 6, tmp_path / "lost"):
        ended(plan, folder, expected)


def test_the_journal_forgets_before_the_files_that_it_tells_of_go(
    plan: Plan, tmp_path: Path
) -> None:
    left = broken_off(plan, tmp_path / "first", 1.0)
    disk = recorded(plan, restored(tmp_path / "second", left), restart=True)
    emptied = disk.log.index(("size", JOURNAL, 0, None))
    synced = next(i for i, e in enumerate(disk.log) if e[:2] == ("sync", JOURNAL) and i > emptied)
    assert all(e[0] not in ("unlink", "write") and not e[3] for e in disk.log[:synced])


@pytest.mark.slow
def test_old_shards_and_new_ones_are_never_mixed(tmp_path: Path) -> None:
    # One shard of each has the same size, as it has after a change of the recipe elsewhere.
    old, new = sharded_plan(), sharded_plan(default="Q4_0")
    before, after = made(old, tmp_path / "old"), made(new, tmp_path / "new")
    assert before.keys() == after.keys()
    disk = recorded(new, restored(tmp_path / "run", before), force=True)
    for folder in losses(disk, 6, tmp_path / "lost"):
        found = held(folder)
        if looks_whole(folder, after):
            assert found.items() >= before.items() or found.items() >= after.items()
        convert_plan(new, folder / "x.gguf", force=True, **QUICK)
        assert held(folder) == after


def test_rows_are_synced_before_the_journal_tells_of_them(plan: Plan, tmp_path: Path) -> None:
    disk = recorded(plan, restored(tmp_path / "run", {}))
    files = lay_out(plan).files
    inodes = {name: inode for call, name, inode, is_made in disk.log if call == "open" and is_made}
    parts = [inodes[f"x-0000{i + 1}-of-0000{len(files)}.gguf.part"] for i in range(len(files))]
    written: dict[Any, list[tuple[int, int, int]]] = {}
    safe: dict[Any, set[int]] = {part: set() for part in parts}
    told = 0
    for number, (call, inode, position, content) in enumerate(disk.log):
        if call == "sync":
            done = [w for w in written.get(inode, ()) if w[0] < position]
            safe.setdefault(inode, set()).update(*(range(a, b) for _, a, b in done))
        elif call == "write" and inode == inodes[JOURNAL] and position:
            for tensor, start, stop, *_ in RECORD.iter_unpack(content):
                if tensor == COMPLETE.tensor:
                    assert all(
                        len(safe[p]) == f.file_bytes - pad(f)
                        for p, f in zip(parts, files, strict=True)
                    )
                    continue
                planned = plan.tensors[tensor]
                row = row_size(planned)
                first = files[planned.shard].position(planned)
                rows = range(first + start * row, first + stop * row)
                assert safe[parts[planned.shard]].issuperset(rows)
                told += len(rows)
        elif call == "write":
            written.setdefault(inode, []).append((number, position, position + len(content)))
    assert told == plan.tensor_bytes


def row_size(tensor: TensorPlan) -> int:
    return tensor.type.row_size(tensor.n_per_row)


def pad(file: FileLayout) -> int:
    """Bytes between and behind the tensors of a file, which nobody writes."""
    return sum(len(zeros) for position, zeros in file.between() if position)


def test_what_the_journal_tells_is_not_made_again(plan: Plan, tmp_path: Path) -> None:
    disk = recorded(plan, restored(tmp_path / "run", {}))
    journal = next(inode for call, name, inode, _ in disk.log if (call, name) == ("open", JOURNAL))
    told = 0
    for number, (call, inode, position, content) in enumerate(disk.log):
        if (call, inode) == ("write", journal) and position:
            if told:
                folder = restored(tmp_path / "lost", disk.after(number, random.Random(0), 1.0))
                assert gone_on(plan, folder).resumed_bytes == told
            rows = [r for r in RECORD.iter_unpack(content) if r[0] != COMPLETE.tensor]
            told += sum((stop - start) * row_size(plan.tensors[t]) for t, start, stop, *_ in rows)
    assert told == plan.tensor_bytes


def test_blocks_that_the_journal_tells_of_and_the_disk_lost_are_made_again(
    plan: Plan, expected: Content, tmp_path: Path
) -> None:
    left = broken_off(plan, tmp_path / "first", 1.0)
    for name in left:
        if name.endswith(".part"):
            left[name] = bytes(len(left[name]))
    folder = restored(tmp_path / "zeros", left)
    assert gone_on(plan, folder).resumed_bytes == 0
    assert held(folder) == expected
