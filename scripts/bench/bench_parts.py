"""A conversion by one process, by parts, and by a Dask cluster: same bytes, wall and CPU time.

    python scripts/models/make_synthetic_r1.py FOLDER --layers 2 --experts 16
    python scripts/bench/bench_parts.py FOLDER [--recipe R] [--parts 4] [--kills 4]

Every process has one thread, so that the figures add up. The parts run one after the other, and
their join is another row. Dask has one worker, then two. Then the parts again, each killed at
a random moment and run again; what that costs is the CPU time beyond that of the undisturbed parts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed import LocalCluster

DYNQUANT = [sys.executable, "-P", "-m", "dynquant.cli"]


@dataclass(frozen=True)
class Took:
    """Seconds of a process and its children."""

    wall: float
    cpu: float

    def __add__(self, other: Took) -> Took:
        return Took(self.wall + other.wall, self.cpu + other.cpu)


def run(command: Sequence[object], kill_after: float | None = None) -> Took:
    """Run a command; raise SystemExit if it fails, unless it is killed."""
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    _, status, used = os.wait4(process.pid, 0)
    if status and kill_after is None:
        raise SystemExit(f"{' '.join(map(str, command))}: failed")
    return Took(time.perf_counter() - started, used.ru_utime + used.ru_stime)


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def show(what: str, took: Took, one: Took) -> None:
    """Print a row."""
    print(
        f"{what:32} wall {took.wall:7.1f} s ({one.wall / took.wall:.2f} of one process's speed),"
        f" CPU {took.cpu:7.1f} s ({took.cpu / one.cpu:.2f})",
        flush=True,
    )


class Bench:
    """The commands of one conversion."""

    def __init__(self, model: Path, scratch: Path, recipe: str) -> None:
        self.model, self.scratch = model, scratch
        self.out, self.plan = scratch / "x.gguf", scratch / "plan.json"
        imatrix = model / "imatrix.gguf"
        self._importance = ["--imatrix", imatrix] if imatrix.exists() else []
        run([*DYNQUANT, "plan", model, "-r", recipe, *self._importance, "--save", self.plan])

    def convert(self, *more: object, kill_after: float | None = None) -> Took:
        """Convert, or write a part."""
        given = [self.model, "--plan", self.plan, *self._importance, "-o", self.out, "--quiet"]
        return run([*DYNQUANT, "convert", *given, *more], kill_after)

    def join(self) -> Took:
        """Join the parts."""
        given = [self.model, "--plan", self.plan, *self._importance, "-o", self.out, "--quiet"]
        return run([*DYNQUANT, "join", *given, "--threads", 1])

    def finished(self) -> str:
        """Return the hash of the output, and remove it."""
        found = sha256(self.out)
        for path in self.scratch.glob("x.gguf*"):
            path.unlink()
        return found

    def dask(self, n_workers: int) -> Took:
        """Convert with a local cluster; its start counts as CPU time only."""
        before = os.times()
        with LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster:
            took = self.convert("--threads", 1, "--scheduler", cluster.scheduler_address)
        after = os.times()
        cpu = after.children_user + after.children_system
        return Took(took.wall, cpu - before.children_user - before.children_system)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="deepseek-r1-iq1_s")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--kills", type=int, default=4, help="of each part, at random moments")
    parser.add_argument("--scratch", type=Path, help="where to write; default: beside FOLDER")
    given = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(dir=given.scratch or given.folder.parent) as scratch:
        bench = Bench(given.folder, Path(scratch), given.recipe)
        bench.convert("--threads", 1)
        bench.finished()  # the source is in the page cache from here on
        one = bench.convert("--threads", 1)
        expected = bench.finished()
        show("one process", one, one)
        numbers = range(1, given.parts + 1)
        parts = [bench.convert("--threads", 1, "--part", f"{n}/{given.parts}") for n in numbers]
        join = bench.join()
        assert bench.finished() == expected, "parts have other bytes"
        whole = sum(parts, Took(0, 0))
        for number, part in zip(numbers, parts, strict=True):
            show(f"  part {number}/{given.parts}", part, one)
        show("  join", join, one)
        longest = max(p.wall for p in parts) + join.wall
        print(
            f"{given.parts} machines: wall {longest:.1f} s, {one.wall / longest:.2f} times faster"
        )
        dask = [bench.dask(1)]
        assert bench.finished() == expected, "one worker writes other bytes"
        dask.append(bench.dask(2))
        assert bench.finished() == expected, "two workers write other bytes"
        for number, took in enumerate(dask, 1):
            show(f"Dask, {number} workers", took, one)
        print(f"two workers: {dask[0].wall / dask[1].wall:.2f} times as fast as one")
        killed = Took(0, 0)
        for number, part in zip(numbers, parts, strict=True):
            for _ in range(given.kills):
                moment = rng.uniform(0.5, part.wall / given.kills)
                killed += bench.convert(
                    "--threads", 1, "--part", f"{number}/{given.parts}", kill_after=moment
                )
            killed += bench.convert("--threads", 1, "--part", f"{number}/{given.parts}")
        bench.join()
        assert bench.finished() == expected, "killed parts have other bytes"
        print(
            f"{given.kills * given.parts} kills: CPU {killed.cpu:.1f} s beside {whole.cpu:.1f} s"
            f" undisturbed ({killed.cpu / whole.cpu - 1:.0%} more: starts, rows that were not"
            " recorded, and reading back)"
        )
        print(f"all outputs have the sha256 {expected}")


if __name__ == "__main__":
    main()
