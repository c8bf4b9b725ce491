"""After a power loss, the next run trusts only data that was synced.

The oracle is an undisturbed conversion; crashes.Disk simulates the power losses.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crashes import QUICK, Disk, contents, looks_complete, made, restored, resumed, sharded_plan

from dynquant.conversion.layout import FileLayout, lay_out
from dynquant.conversion.records import COMPLETE
from dynquant.conversion.write import convert_plan
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.systems import system

pytestmark = pytest.mark.skipif(
    not system().renames_open, reason="the simulated disk loses names of folders without a sync"
)

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
    """Do not wait for the real disk; the simulated one defines which data is safe."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def recorded(plan: Plan, folder: Path, **options: Any) -> Disk:
    disk = Disk(folder)
    with disk.recorded():
        convert_plan(plan, folder / "x.gguf", **(QUICK | options))
    return disk


def some(disk: Disk, n: int) -> list[int]:
    """Return moments of a run: those at both ends, and about n of the others."""
    length = len(disk.log)
    return sorted({*range(12), *range(length - 16, length + 1), *range(0, length, length // n)})


def losses(disk: Disk, n: int, folder: Path) -> Iterator[Path]:
    """Yield the folder after power losses in which all, no or some unsynced data is lost."""
    for moment in some(disk, n):
        for lost in (1.0, 0.0, 0.5):
            yield restored(folder, disk.after(moment, random.Random(moment), lost))


def check_resume(plan: Plan, folder: Path, expected: Content) -> None:
    """Check that no incomplete output looks complete, and that the next run completes it."""
    assert not looks_complete(folder, expected) or contents(folder).items() >= expected.items()
    if contents(folder) != expected:
        resumed(plan, folder)
    assert contents(folder) == expected


@pytest.mark.slow
def test_run_resumes_correctly_after_a_power_loss(
    plan: Plan, expected: Content, tmp_path: Path
) -> None:
    disk = recorded(plan, restored(tmp_path / "run", {}))
    for folder in losses(disk, 12, tmp_path / "lost"):
        check_resume(plan, folder, expected)


def interrupted(plan: Plan, folder: Path, share: float = 0.6) -> Content:
    """Return the files left by a run that lost power after a share of its work."""
    disk = recorded(plan, restored(folder, {}))
    last = max(i for i, (call, *_) in enumerate(disk.log) if call == "write")
    return disk.after(round(last * share), random.Random(1), 0.5)


@pytest.mark.slow
def test_run_resumes_correctly_after_two_power_losses(
    plan: Plan, expected: Content, tmp_path: Path
) -> None:
    left = interrupted(plan, tmp_path / "first")
    disk = recorded(plan, restored(tmp_path / "second", left))
    for folder in losses(disk, 6, tmp_path / "lost"):
        check_resume(plan, folder, expected)


@pytest.mark.slow
def test_headers_are_written_after_a_power_loss_during_restart(
    plan: Plan, expected: Content, tmp_path: Path
) -> None:
    left = interrupted(plan, tmp_path / "first", 1.0)
    disk = recorded(plan, restored(tmp_path / "second", left), restart=True)
    for folder in losses(disk, 6, tmp_path / "lost"):
        check_resume(plan, folder, expected)


def test_restart_empties_the_journal_before_it_deletes_the_files(
    plan: Plan, tmp_path: Path
) -> None:
    left = interrupted(plan, tmp_path / "first", 1.0)
    disk = recorded(plan, restored(tmp_path / "second", left), restart=True)
    emptied = disk.log.index(("size", JOURNAL, 0, None))
    synced = next(i for i, e in enumerate(disk.log) if e[:2] == ("sync", JOURNAL) and i > emptied)
    assert all(e[0] not in ("unlink", "write") and not e[3] for e in disk.log[:synced])


@pytest.mark.slow
def test_old_and_new_shards_are_never_mixed(tmp_path: Path) -> None:
    # One shard has the same size in both, as after a change of the recipe for other tensors.
    old, new = sharded_plan(), sharded_plan(default="Q4_0")
    before, after = made(old, tmp_path / "old"), made(new, tmp_path / "new")
    assert before.keys() == after.keys()
    disk = recorded(new, restored(tmp_path / "run", before), force=True)
    for folder in losses(disk, 6, tmp_path / "lost"):
        found = contents(folder)
        if looks_complete(folder, after):
            assert found.items() >= before.items() or found.items() >= after.items()
        convert_plan(new, folder / "x.gguf", force=True, **QUICK)
        assert contents(folder) == after


def test_rows_are_synced_before_the_journal_records_them(plan: Plan, tmp_path: Path) -> None:
    disk = recorded(plan, restored(tmp_path / "run", {}))
    files = lay_out(plan).files
    inodes = {name: inode for call, name, inode, is_made in disk.log if call == "open" and is_made}
    parts = [inodes[f"x-0000{i + 1}-of-0000{len(files)}.gguf.part"] for i in range(len(files))]
    written: dict[Any, list[tuple[int, int, int]]] = {}
    safe: dict[Any, set[int]] = {part: set() for part in parts}
    n_recorded = 0
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
                n_recorded += len(rows)
        elif call == "write":
            written.setdefault(inode, []).append((number, position, position + len(content)))
    assert n_recorded == plan.tensor_bytes


def row_size(tensor: TensorPlan) -> int:
    return tensor.type.row_size(tensor.n_per_row)


def pad(file: FileLayout) -> int:
    """Return the number of padding bytes of a file, which are not written."""
    return sum(len(zeros) for position, zeros in file.between() if position)


@pytest.mark.slow
def test_rows_in_the_journal_are_not_encoded_again(plan: Plan, tmp_path: Path) -> None:
    disk = recorded(plan, restored(tmp_path / "run", {}))
    journal = next(inode for call, name, inode, _ in disk.log if (call, name) == ("open", JOURNAL))
    n_recorded = 0
    for number, (call, inode, position, content) in enumerate(disk.log):
        if (call, inode) == ("write", journal) and position:
            if n_recorded:
                folder = restored(tmp_path / "lost", disk.after(number, random.Random(0), 1.0))
                assert resumed(plan, folder).resumed_bytes == n_recorded
            rows = [r for r in RECORD.iter_unpack(content) if r[0] != COMPLETE.tensor]
            n_recorded += sum(
                (stop - start) * row_size(plan.tensors[t]) for t, start, stop, *_ in rows
            )
    assert n_recorded == plan.tensor_bytes


@pytest.mark.slow
def test_blocks_in_the_journal_that_the_disk_lost_are_encoded_again(
    plan: Plan, expected: Content, tmp_path: Path
) -> None:
    left = interrupted(plan, tmp_path / "first", 1.0)
    for name in left:
        if name.endswith(".part"):
            left[name] = bytes(len(left[name]))
    folder = restored(tmp_path / "zeros", left)
    assert resumed(plan, folder).resumed_bytes == 0
    assert contents(folder) == expected
