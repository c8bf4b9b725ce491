"""A conversion on a Dask cluster of local processes gives the bytes of one process.

The oracle is an undisturbed conversion.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from inprocess import run
from places import TINY_BOOKS

import dynquant
from dynquant.cluster import extra, task
from dynquant.cluster.run import convert_on_cluster
from dynquant.conversion.engine import Progress
from dynquant.errors import ClusterError

distributed: Any = pytest.importorskip("distributed", reason="needs the extra `cluster`")

pytestmark = pytest.mark.slow

N_PARTS = 6


@pytest.fixture(scope="module")
def plan() -> dynquant.Plan:
    return dynquant.make_plan(TINY_BOOKS, "q4_k_m")


@pytest.fixture(scope="module")
def expected(plan: dynquant.Plan, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "x.gguf"
    plan.write(out)
    return out.read_bytes()


@pytest.fixture
def cluster() -> Generator[Any]:
    """Two worker processes of one thread each, without a dashboard."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        worker_dashboard_address=None,
        silence_logs=50,
    ) as found:
        yield found


def convert(plan: dynquant.Plan, out: Path, address: str, **options: Any) -> Any:
    given = {"model": str(TINY_BOOKS), "n_parts": N_PARTS, **options}
    return convert_on_cluster(plan, out, address, **given)


def test_workers_write_the_bytes_of_one_process(
    plan: dynquant.Plan, expected: bytes, cluster: Any, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    out = tmp_path / "x.gguf"
    result = convert(plan, out, cluster.scheduler_address, progress=seen.append)
    assert result.sha256
    assert out.read_bytes() == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.gguf", "x.gguf.manifest.json"]
    steps = [p.bytes_done for p in seen[: N_PARTS + 1]]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, seen[0].bytes_total)


def test_the_command_line_uses_a_cluster(expected: bytes, cluster: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    address = cluster.scheduler_address
    done = run("convert", TINY_BOOKS, "-r", "q4_k_m", "-o", out, "--scheduler", address)
    assert done.code == 0, done.err
    assert out.read_bytes() == expected
    assert not [*tmp_path.glob("*cluster-plan*")]


def test_a_killed_worker_costs_only_what_it_had_not_recorded(
    plan: dynquant.Plan, expected: bytes, cluster: Any, tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    pids = {w.pid for w in cluster.workers.values()}

    def kill_one() -> None:
        while not [*tmp_path.glob("*.journal")]:
            time.sleep(0.002)
        os.kill(min(pids), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    convert(plan, out, cluster.scheduler_address)
    killer.join()
    assert out.read_bytes() == expected


def test_workers_of_another_version_are_refused(
    plan: dynquant.Plan, cluster: Any, tmp_path: Path
) -> None:
    def other() -> None:
        task.version = lambda: "dynquant 9.9"  # type: ignore[assignment]

    with distributed.Client(cluster) as client:
        (first, _) = client.scheduler_info()["workers"]
        client.run(other, workers=[first])
    with pytest.raises(ClusterError, match=r"has dynquant 9\.9, and not .*install the same"):
        convert(plan, tmp_path / "x.gguf", cluster.scheduler_address)
    assert not [*tmp_path.glob("x.gguf*.journal")]


def test_a_worker_that_joins_later_with_another_version_does_not_write(
    plan: dynquant.Plan, tmp_path: Path
) -> None:
    spec = task.Spec(
        str(TINY_BOOKS), "p", "0" * 64, str(tmp_path / "x.gguf"), None, None, (), None, "9", "none"
    )
    with pytest.raises(ClusterError, match="and not 9; install the same on all machines"):
        task.write(spec, 1, 2, 1)
    assert not [*tmp_path.iterdir()]


def test_a_scheduler_that_is_lost_leaves_what_was_written(
    plan: dynquant.Plan, expected: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    options = {"n_workers": 1, "threads_per_worker": 1, "silence_logs": 50}
    lost = distributed.LocalCluster(dashboard_address=None, **options)

    def lose() -> None:
        while not [*tmp_path.glob("*.json.part"), *tmp_path.glob("*-of-*.json")]:
            time.sleep(0.002)
        lost.close()

    loser = threading.Thread(target=lose)
    loser.start()
    with pytest.raises(ClusterError, match=r"was lost .*the same command resumes"):
        convert(plan, out, lost.scheduler_address)
    loser.join()
    assert not out.exists()
    with distributed.LocalCluster(dashboard_address=None, **options) as found:
        convert(plan, out, found.scheduler_address, n_parts=99)
    assert out.read_bytes() == expected


def test_a_scheduler_that_there_is_not_is_one_error(plan: dynquant.Plan, tmp_path: Path) -> None:
    from dynquant.cluster import run as room

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_CONNECT", "1s")
        with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:1: cannot be reached"):
            convert(plan, tmp_path / "x.gguf", "tcp://127.0.0.1:1")
    assert not list(tmp_path.glob("x.gguf*"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda _: None)
    with pytest.raises(ClusterError, match=r"pip install 'dynquant-gguf\[cluster\]'"):
        extra.distributed()
