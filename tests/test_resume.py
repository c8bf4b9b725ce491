"""Whatever ends a conversion, the next one goes on to the same bytes, and nothing looks finished.

The oracle is a conversion that nothing disturbed.
"""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from crashes import (
    CALLS,
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

from dynquant.conversion.engine import convert_plan
from dynquant.errors import ConvertError
from dynquant.plan.plan import Plan

KILLS = 50
WRITES = ("pwrite", "fsync", "ftruncate", "posix_fallocate", "replace", "unlink")


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


ONE: dict[str, Any] = {"threads": 1, "chunk_bytes": 40_000, "sync_seconds": 0.001}


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

        killed(die, lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT))
        ended(plan, folder, expected)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("open", errno.EACCES),
        ("posix_fallocate", errno.ENOSPC),
        ("ftruncate", errno.EIO),
        ("pwrite", errno.ENOSPC),
        ("pwrite", errno.EIO),
        ("fsync", errno.EIO),
        ("fsync", errno.EDQUOT),
        ("replace", errno.EIO),
        ("unlink", errno.EIO),
    ],
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
