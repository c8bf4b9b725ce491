"""An interrupted conversion resumes to the same bytes, and its output does not look complete.

The oracle is an undisturbed conversion.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from crashes import (
    CALLS,
    QUICK,
    Counter,
    at_call,
    contents,
    dies,
    fails,
    killed,
    looks_complete,
    made,
    restored,
    resumed,
    sharded_plan,
)
from handmade import model, names, recipe, stored_tensor, weights
from subsets import slow_except

from dynquant.cli import _terminate  # type: ignore[reportPrivateUsage]
from dynquant.conversion.engine import Progress
from dynquant.conversion.jobs import jobs
from dynquant.conversion.layout import lay_out
from dynquant.conversion.scope import Scope
from dynquant.conversion.work import work_of
from dynquant.conversion.write import convert_plan
from dynquant.errors import CheckpointError, ConvertError
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan

KILLS = 50


@pytest.fixture(scope="module")
def plan() -> Plan:
    return sharded_plan()


@pytest.fixture(scope="module")
def expected(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    content = made(plan, tmp_path_factory.mktemp("resume") / "whole")
    assert sorted(content) == ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]
    return content


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not sync: data that a killed process wrote is in the page cache anyway."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def check_resume(plan: Plan, folder: Path, expected: dict[str, bytes]) -> None:
    """Check that no incomplete output looks complete, and that the next run completes it."""
    if looks_complete(folder, expected):
        assert contents(folder).items() >= expected.items()
    if contents(folder) != expected:  # otherwise it had finished before it was stopped
        resumed(plan, folder)
    assert contents(folder) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
def test_conversion_killed_at_50_random_moments_gives_the_same_files(tmp_path: Path) -> None:
    plan = sharded_plan(rows=700, default="Q4_K")
    began = time.perf_counter()
    expected = made(plan, tmp_path / "whole")
    seconds = time.perf_counter() - began
    rng = random.Random(6)
    folder = restored(tmp_path / "killed", {})
    kills = 0
    while kills < KILLS:
        is_killed = killed(
            lambda: resumed(plan, folder), lambda: time.sleep(rng.uniform(0, seconds))
        )
        is_whole = contents(folder) == expected
        kills += is_killed and not is_whole
        assert not looks_complete(folder, expected) or contents(folder).items() >= expected.items()
        if is_whole:
            restored(folder, {})
    check_resume(plan, folder, expected)


def wait_for_child() -> None:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


ONE: dict[str, Any] = {"threads": 1, "chunk_bytes": 40_000, "sync_seconds": 0.001}


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
def test_conversion_killed_before_a_change_of_the_disk_resumes(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with at_call(CALLS, 0, dies) as counter:
        made(plan, tmp_path / "whole", **ONE)
    n = counter.seen
    # All calls at the end, where files get their final names, and some of the others.
    for number in (*range(1, n - 14, 5), *range(n - 14, n + 1)):
        folder = restored(tmp_path / str(number), {})

        def die(number: int = number, folder: Path = folder) -> None:
            with at_call(CALLS, number, dies):
                convert_plan(plan, folder / "x.gguf", **ONE)

        killed(die, wait_for_child)
        check_resume(plan, folder, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(
    ("call", "code"),
    slow_except(
        [("pwrite", errno.ENOSPC)],
        [
            ("open", errno.EACCES),
            ("fallocate", errno.ENOSPC),
            ("ftruncate", errno.EIO),
            ("pwrite", errno.ENOSPC),
            ("pwrite", errno.EIO),
            ("fsync", errno.EIO),
            ("fsync", errno.EDQUOT),
            ("replace", errno.EIO),
            ("unlink", errno.EIO),
        ],
    ),
)
def test_failed_call_is_reported_and_next_run_resumes(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, call: str, code: int
) -> None:
    number, is_over = 1, False
    while not is_over:
        folder = restored(tmp_path / str(number), {})
        with at_call((call,), number, fails(code)) as counter:
            try:
                convert_plan(plan, folder / "x.gguf", **ONE)
            except ConvertError as e:
                assert str(folder) in str(e)
        is_over = counter.seen < number
        check_resume(plan, folder, expected)
        number += 1 + number // 5


# ---- stopped, refused, locked --------------------------------------------------------------------


STEADY: dict[str, Any] = {"threads": 1, "chunk_bytes": 8192, "sync_seconds": 1e6}
"""Jobs run in order, and are recorded only at the end."""


def at_job(number: int, act: Callable[[], object]) -> AbstractContextManager[Counter]:
    """Run `act` before the blocks of a job are written; the output has two shards."""
    headers_and_identity = 3
    return at_call(("pwrite",), headers_and_identity + number, act)


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupted(plan: Plan, folder: Path, n_jobs: int = 25) -> Path:
    """Return a folder in which a conversion was interrupted after some of about 50 jobs."""
    folder.mkdir()
    with at_job(n_jobs + 1, interrupt), pytest.raises(KeyboardInterrupt):
        convert_plan(plan, folder / "x.gguf", **STEADY)
    return folder


def bytes_of(plan: Plan, n_jobs: int) -> int:
    """Return the number of bytes of the first jobs of a steady run."""
    return sum(
        job.n_bytes
        for job in islice(jobs(Scope.whole(work_of(plan)), STEADY["chunk_bytes"], {}), n_jobs)
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_after_the_current_job_at_a_signal_and_the_journal_is_complete(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    folder = restored(tmp_path / "stopped", {})
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}

    def stop() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.5)  # the duration of the current job

    def run() -> None:
        signal.signal(number, handlers[number])
        with at_job(20, stop), pytest.raises((KeyboardInterrupt, SystemExit)):
            convert_plan(plan, folder / "x.gguf", **STEADY)

    assert not killed(run, wait_for_child)
    assert resumed(plan, folder).resumed_bytes == bytes_of(plan, 20)
    assert contents(folder) == expected


@pytest.mark.slow
def test_output_is_locked_until_the_run_that_writes_it_dies(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = restored(tmp_path / "locked", {})

    def run() -> None:
        convert_plan(plan, folder / "x.gguf", progress=lambda _: time.sleep(60), **QUICK)

    def check_refusal() -> None:
        while not (folder / "x.gguf.journal").exists() or not list(folder.glob("*.part")):
            time.sleep(0.001)
        for options in ({}, {"force": True}, {"restart": True}):
            with pytest.raises(ConvertError, match="another dynquant is writing it"):
                convert_plan(plan, folder / "x.gguf", **options, **QUICK)

    assert killed(run, check_refusal)
    resumed(plan, folder)
    assert contents(folder) == expected


def test_outputs_with_the_same_shard_names_exclude_each_other(plan: Plan, tmp_path: Path) -> None:
    def check_refusal(_: Progress) -> None:
        with pytest.raises(ConvertError, match=r"gguf\.part: another dynquant is writing it"):
            convert_plan(plan, tmp_path / "x", **QUICK)

    convert_plan(plan, tmp_path / "x.gguf", progress=check_refusal, **QUICK)
    assert len(names(tmp_path)) == 2


def test_journal_of_another_conversion_is_refused_and_files_are_unchanged(
    plan: Plan, tmp_path: Path
) -> None:
    folder = interrupted(plan, tmp_path / "a")
    before = contents(folder)
    with pytest.raises(
        ConvertError, match=r"recipe was hand, sha256 [0-9a-f]{12}… and is hand, sha256 .*--restart"
    ):
        resumed(sharded_plan(default="Q4_0"), folder)
    assert contents(folder) == before


@pytest.mark.slow
def test_restart_starts_from_zero_and_removes_parts_with_another_split(
    plan: Plan, tmp_path: Path
) -> None:
    other = sharded_plan(4)
    expected = made(other, tmp_path / "whole")
    folder = interrupted(plan, tmp_path / "a")
    assert convert_plan(other, folder / "x.gguf", restart=True, **QUICK).resumed_bytes == 0
    assert contents(folder) == expected


def test_refused_restart_keeps_existing_rows(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = interrupted(plan, tmp_path / "a")
    (folder / min(expected)).write_text("mine")
    before = contents(folder)
    with pytest.raises(ConvertError, match="exists; replace it with --force"):
        convert_plan(plan, folder / "x.gguf", restart=True, **QUICK)
    assert contents(folder) == before


def test_file_that_is_not_a_journal_is_unchanged(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "x.gguf.journal").write_text("Dear diary,\n")
    with pytest.raises(ConvertError, match="not a journal of a conversion; move it away"):
        resumed(plan, tmp_path)
    assert contents(tmp_path) == {"x.gguf.journal": b"Dear diary,\n"}
    convert_plan(plan, tmp_path / "x.gguf", restart=True, **QUICK)


# ---- damaged files -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("where", [0, 0.3, "padding"])
def test_part_damaged_between_runs_is_repaired(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, where: float | str
) -> None:
    folder = interrupted(plan, tmp_path / "a", 48)
    part = max(folder.glob("*.part"))
    content = bytearray(part.read_bytes())
    padding = [at for at, _ in lay_out(plan).files[-1].between() if at]
    at = padding[0] if isinstance(where, str) else int(len(content) * where)
    content[at] ^= 1
    part.write_bytes(content)
    resumed(plan, folder)
    assert contents(folder) == expected


def unrenamed(plan: Plan, folder: Path) -> Path:
    """Return a folder in which only one rename is missing, because the process was killed."""
    folder.mkdir()

    def die() -> None:
        with at_call(("replace",), 2, dies):
            resumed(plan, folder)

    assert killed(die, wait_for_child)
    return folder


@pytest.mark.slow
def test_complete_rows_are_only_read_before_the_last_rename(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = unrenamed(plan, tmp_path / "a")
    assert not looks_complete(folder, expected)
    assert resumed(plan, folder).resumed_bytes == plan.tensor_bytes
    assert contents(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("length", ["same", "other"])
def test_file_that_replaced_a_finished_shard_is_not_overwritten(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, length: str
) -> None:
    folder = unrenamed(plan, tmp_path / "a")
    theirs = folder / max(expected)
    header = lay_out(plan).files[1].header
    size = len(expected[theirs.name]) if length == "same" else len(header) + 100
    theirs.write_bytes(header + bytes(size - len(header)))
    before = contents(folder)
    with pytest.raises(ConvertError, match=r"--force|changed since the interrupted run wrote it"):
        resumed(plan, folder)
    assert contents(folder) == before
    convert_plan(plan, folder / "x.gguf", restart=True, force=True, **QUICK)
    assert contents(folder) == expected


@pytest.mark.parametrize("torn", [b"torn", bytes(500), b"\xff" * 500])
def test_rows_recorded_after_a_torn_record_are_found(
    plan: Plan, tmp_path: Path, torn: bytes
) -> None:
    folder = interrupted(plan, tmp_path / "a", 10)
    with (folder / "x.gguf.journal").open("ab") as file:
        file.write(torn)
    # Ten more jobs: this run does not write the headers and the identity first.
    with at_call(("pwrite",), 11, interrupt), pytest.raises(KeyboardInterrupt):
        convert_plan(plan, folder / "x.gguf", **STEADY)
    assert resumed(plan, folder).resumed_bytes == bytes_of(plan, 20)


def test_output_is_the_same_if_signals_interrupt_calls(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        found = made(plan, tmp_path / "a")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
    assert found == expected


def test_source_that_changes_during_a_run_is_reported(tmp_path: Path) -> None:
    tensor = stored_tensor(tmp_path / "w", "a.weight", weights(50, 256))
    plan = make_plan(model(tensor), recipe())

    def write(_: Progress) -> None:
        os.utime(tmp_path / "w", ns=(1, 1))

    with pytest.raises(CheckpointError, match=r"w: changed while it was read"):
        convert_plan(plan, tmp_path / "x.gguf", progress=write, **QUICK)
    assert "x.gguf" not in names(tmp_path)
