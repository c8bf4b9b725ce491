"""Whatever ends a conversion, the next one goes on to the same bytes, and nothing looks finished.

The oracle is a conversion that nothing disturbed.
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
    dies,
    fails,
    gone_on,
    held,
    killed,
    looks_whole,
    made,
    restored,
    sharded_plan,
)
from handmade import model, names, recipe, stored_tensor, weights
from subsets import slow_except

from dynquant.cli import _terminate  # type: ignore[reportPrivateUsage]
from dynquant.conversion.engine import Progress
from dynquant.conversion.jobs import jobs
from dynquant.conversion.layout import lay_out
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
    """What a process wrote is there when it dies, synced or not: time is saved."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def ended(plan: Plan, folder: Path, expected: dict[str, bytes]) -> None:
    """Nothing in a folder looks complete and is not; the next run completes it, and only that."""
    if looks_whole(folder, expected):
        assert held(folder).items() >= expected.items()
    if held(folder) != expected:  # else it was over when it was stopped
        gone_on(plan, folder)
    assert held(folder) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
def test_conversions_killed_at_50_random_moments_end_in_the_same_files(tmp_path: Path) -> None:
    plan = sharded_plan(rows=700, default="Q4_K")
    began = time.perf_counter()
    expected = made(plan, tmp_path / "whole")
    seconds = time.perf_counter() - began
    rng = random.Random(6)
    folder = restored(tmp_path / "killed", {})
    kills = 0
    while kills < KILLS:
        is_killed = killed(
            lambda: gone_on(plan, folder), lambda: time.sleep(rng.uniform(0, seconds))
        )
        is_whole = held(folder) == expected
        kills += is_killed and not is_whole
        assert not looks_whole(folder, expected) or held(folder).items() >= expected.items()
        if is_whole:
            restored(folder, {})
    ended(plan, folder, expected)


def until_it_ends() -> None:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


ONE: dict[str, Any] = {"threads": 1, "chunk_bytes": 40_000, "sync_seconds": 0.001}


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
def test_killed_before_a_change_of_the_disk_it_goes_on(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with at_call(CALLS, 0, dies) as counter:
        made(plan, tmp_path / "whole", **ONE)
    n = counter.seen
    # All the calls at the end, where files get their names, and some of the others.
    for number in (*range(1, n - 14, 5), *range(n - 14, n + 1)):
        folder = restored(tmp_path / str(number), {})

        def die(number: int = number, folder: Path = folder) -> None:
            with at_call(CALLS, number, dies):
                convert_plan(plan, folder / "x.gguf", **ONE)

        killed(die, until_it_ends)
        ended(plan, folder, expected)


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
def test_a_call_that_fails_is_told_and_the_next_run_goes_on(
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
        ended(plan, folder, expected)
        number += 1 + number // 5


# ---- stopped, refused, locked --------------------------------------------------------------------


STEADY: dict[str, Any] = {"threads": 1, "chunk_bytes": 8192, "sync_seconds": 1e6}
"""Jobs in their order; nothing is noted but at the end."""


def at_job(number: int, act: Callable[[], object]) -> AbstractContextManager[Counter]:
    """Let something happen before the blocks of a job (of two shards) are written."""
    headers_and_identity = 3
    return at_call(("pwrite",), headers_and_identity + number, act)


def interrupt() -> None:
    raise KeyboardInterrupt


def broken_off(plan: Plan, folder: Path, n_jobs: int = 25) -> Path:
    """A folder in which a conversion was interrupted after some jobs (of about 50)."""
    folder.mkdir()
    with at_job(n_jobs + 1, interrupt), pytest.raises(KeyboardInterrupt):
        convert_plan(plan, folder / "x.gguf", **STEADY)
    return folder


def bytes_of(plan: Plan, n_jobs: int) -> int:
    """Bytes of the first jobs of a steady run."""
    return sum(
        job.n_bytes for job in islice(jobs(work_of(plan), STEADY["chunk_bytes"], {}), n_jobs)
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_job_at_hand_and_all_is_in_the_journal(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    folder = restored(tmp_path / "stopped", {})
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}

    def stop() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.5)  # the job at hand takes that long

    def run() -> None:
        signal.signal(number, handlers[number])
        with at_job(20, stop), pytest.raises((KeyboardInterrupt, SystemExit)):
            convert_plan(plan, folder / "x.gguf", **STEADY)

    assert not killed(run, until_it_ends)
    assert gone_on(plan, folder).resumed_bytes == bytes_of(plan, 20)
    assert held(folder) == expected


def test_while_one_run_writes_no_other_does_and_its_death_unlocks(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = restored(tmp_path / "locked", {})

    def run() -> None:
        convert_plan(plan, folder / "x.gguf", progress=lambda _: time.sleep(60), **QUICK)

    def try_it() -> None:
        while not (folder / "x.gguf.journal").exists() or not list(folder.glob("*.part")):
            time.sleep(0.001)
        for options in ({}, {"force": True}, {"restart": True}):
            with pytest.raises(ConvertError, match="another dynquant is writing it"):
                convert_plan(plan, folder / "x.gguf", **options, **QUICK)

    assert killed(run, try_it)
    gone_on(plan, folder)
    assert held(folder) == expected


def test_outputs_whose_shards_have_the_same_names_exclude_each_other(
    plan: Plan, tmp_path: Path
) -> None:
    def try_it(_: Progress) -> None:
        with pytest.raises(ConvertError, match=r"gguf\.part: another dynquant is writing it"):
            convert_plan(plan, tmp_path / "x", **QUICK)

    convert_plan(plan, tmp_path / "x.gguf", progress=try_it, **QUICK)
    assert len(names(tmp_path)) == 2


def test_a_journal_of_another_conversion_is_refused_and_nothing_touched(
    plan: Plan, tmp_path: Path
) -> None:
    folder = broken_off(plan, tmp_path / "a")
    before = held(folder)
    with pytest.raises(ConvertError, match=r"recipe was .* and is .*--restart"):
        gone_on(sharded_plan(default="Q4_0"), folder)
    assert held(folder) == before


def test_restart_begins_anew_and_takes_parts_of_another_cut_away(
    plan: Plan, tmp_path: Path
) -> None:
    other = sharded_plan(4)
    expected = made(other, tmp_path / "whole")
    folder = broken_off(plan, tmp_path / "a")
    assert convert_plan(other, folder / "x.gguf", restart=True, **QUICK).resumed_bytes == 0
    assert held(folder) == expected


def test_a_restart_that_is_refused_leaves_the_rows_that_are_there(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = broken_off(plan, tmp_path / "a")
    (folder / min(expected)).write_text("mine")
    before = held(folder)
    with pytest.raises(ConvertError, match="exists; replace it with --force"):
        convert_plan(plan, folder / "x.gguf", restart=True, **QUICK)
    assert held(folder) == before


def test_a_file_that_is_no_journal_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "x.gguf.journal").write_text("Dear diary,\n")
    with pytest.raises(ConvertError, match="not a journal of a conversion; move it away"):
        gone_on(plan, tmp_path)
    assert held(tmp_path) == {"x.gguf.journal": b"Dear diary,\n"}
    convert_plan(plan, tmp_path / "x.gguf", restart=True, **QUICK)


# ---- found damaged -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 0.3, "padding"])
def test_a_part_that_was_damaged_meanwhile_is_mended(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, where: float | str
) -> None:
    folder = broken_off(plan, tmp_path / "a", 48)
    part = max(folder.glob("*.part"))
    content = bytearray(part.read_bytes())
    padding = [at for at, _ in lay_out(plan).files[-1].between() if at]
    at = padding[0] if isinstance(where, str) else int(len(content) * where)
    content[at] ^= 1
    part.write_bytes(content)
    gone_on(plan, folder)
    assert held(folder) == expected


def noted(plan: Plan, folder: Path) -> Path:
    """A folder in which all is done, and one rename is not; the process died."""
    folder.mkdir()

    def die() -> None:
        with at_call(("replace",), 2, dies):
            gone_on(plan, folder)

    assert killed(die, until_it_ends)
    return folder


def test_all_that_was_complete_is_only_read_and_named(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = noted(plan, tmp_path / "a")
    assert not looks_whole(folder, expected)
    assert gone_on(plan, folder).resumed_bytes == plan.tensor_bytes
    assert held(folder) == expected


@pytest.mark.parametrize("length", ["same", "other"])
def test_a_file_put_in_the_place_of_a_named_one_is_not_overwritten(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, length: str
) -> None:
    folder = noted(plan, tmp_path / "a")
    theirs = folder / max(expected)
    header = lay_out(plan).files[1].header
    size = len(expected[theirs.name]) if length == "same" else len(header) + 100
    theirs.write_bytes(header + bytes(size - len(header)))
    before = held(folder)
    with pytest.raises(ConvertError, match=r"--force|changed since the interrupted run wrote it"):
        gone_on(plan, folder)
    assert held(folder) == before
    convert_plan(plan, folder / "x.gguf", restart=True, force=True, **QUICK)
    assert held(folder) == expected


@pytest.mark.parametrize("torn", [b"torn", bytes(500), b"\xff" * 500])
def test_rows_that_are_noted_after_a_torn_record_are_found(
    plan: Plan, tmp_path: Path, torn: bytes
) -> None:
    folder = broken_off(plan, tmp_path / "a", 10)
    with (folder / "x.gguf.journal").open("ab") as file:
        file.write(torn)
    # Ten more: this time neither headers nor an identity are written before.
    with at_call(("pwrite",), 11, interrupt), pytest.raises(KeyboardInterrupt):
        convert_plan(plan, folder / "x.gguf", **STEADY)
    assert gone_on(plan, folder).resumed_bytes == bytes_of(plan, 20)


def test_signals_that_interrupt_calls_change_nothing(
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


def test_a_source_that_is_written_meanwhile_is_told(tmp_path: Path) -> None:
    tensor = stored_tensor(tmp_path / "w", "a.weight", weights(50, 256))
    plan = make_plan(model(tensor), recipe())

    def write(_: Progress) -> None:
        os.utime(tmp_path / "w", ns=(1, 1))

    with pytest.raises(CheckpointError, match=r"w: changed while it was read"):
        convert_plan(plan, tmp_path / "x.gguf", progress=write, **QUICK)
    assert "x.gguf" not in names(tmp_path)
