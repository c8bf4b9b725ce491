#!/usr/bin/env python3
"""Five files by one ladder against five conversions: wall time, CPU time, bytes read.

    python scripts/models/make_synthetic_llama.py /tmp/synthetic
    python scripts/bench/bench_ladder.py /tmp/synthetic [--threads 2] [--repeats 3] [--cold]

The ladder and each of the five conversions are separate processes, one after the other. Runs of the
ladder and of the conversions take turns; the least wall time of the repeats is printed with its CPU
time. Bytes read are those of read calls (rchar of /proc/self/io, so Linux only), without what
Python reads to start: a conversion reads the source twice, for the rows and for the hashes, the
second time from the page cache. --cold drops the source from the page cache before each process.
The sha256 of all files are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

LADDERS = {
    "quick types": ("q8_0", "Q4_0", "Q5_0", "f16", "bf16"),
    "K types": ("q8_0", "dynamic-6bit", "dynamic-5bit", "dynamic-4bit", "Q4_K_S"),
}

RUN = """
import json, os, resource, sys
from pathlib import Path
import dynquant

def n_read():
    return int(next(l.split()[1] for l in open("/proc/self/io") if l.startswith("rchar")))

model, folder, threads, *recipes = sys.argv[1:]
before = n_read()
if len(recipes) > 1:
    dynquant.ladder(model, folder, recipes=recipes, threads=int(threads))
else:
    out = Path(folder) / f"{Path(model).name}-{recipes[0]}.gguf"
    dynquant.convert(model, out, recipe=recipes[0], threads=int(threads))
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([usage.ru_utime + usage.ru_stime, n_read() - before, usage.ru_maxrss * 1024]))
"""


@dataclass(frozen=True)
class Run:
    """Seconds and bytes; memory is the largest of the processes."""

    wall: float
    cpu: float
    read: int
    memory: int

    def __add__(self, other: Run) -> Run:
        """Return two runs one after the other."""
        return Run(
            self.wall + other.wall,
            self.cpu + other.cpu,
            self.read + other.read,
            max(self.memory, other.memory),
        )


def run(model: Path, folder: Path, threads: int, recipes: tuple[str, ...], *, cold: bool) -> Run:
    """Run one process; raise CalledProcessError if it fails."""
    if cold:
        drop(model)
    command = [sys.executable, "-c", RUN, str(model), str(folder), str(threads), *recipes]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    wall = time.perf_counter() - start
    cpu, n_read, memory = json.loads(done.stdout)
    return Run(wall, cpu, n_read, memory)


def drop(model: Path) -> None:
    """Drop the model's files from the page cache."""
    for path in model.glob("*.safetensors"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each GGUF in a folder, and remove all files."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".gguf":
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        path.unlink()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--only", choices=tuple(LADDERS))
    given = parser.parse_args()
    n_source = sum(p.stat().st_size for p in given.model.glob("*.safetensors"))
    table = Table(box=None, pad_edge=False)
    for column in ("five files", "wall s", "CPU s", "read GB", "of the source", "memory MB"):
        table.add_column(column, justify="left" if column == "five files" else "right")
    for name, recipes in LADDERS.items():
        if given.only not in (None, name):
            continue
        ladders: list[Run] = []
        conversions: list[Run] = []
        with tempfile.TemporaryDirectory(dir=given.model.parent) as scratch:
            folder = Path(scratch)
            for _ in range(given.repeats):
                how = (given.model, folder, given.threads)
                ladders.append(run(*how, recipes, cold=given.cold))
                together = hashes(folder)
                each = [run(*how, (recipe,), cold=given.cold) for recipe in recipes]
                conversions.append(sum(each[1:], each[0]))
                if together != hashes(folder):
                    raise SystemExit(f"{name}: the files differ: {together}")
        best = [min(runs, key=lambda r: r.wall) for runs in (ladders, conversions)]
        for way, its in zip(("one ladder", "five conversions"), best, strict=True):
            table.add_row(
                f"{name}: {way}",
                f"{its.wall:.1f}",
                f"{its.cpu:.1f}",
                f"{its.read / 1e9:.2f}",
                f"{its.read / n_source:.1f}",
                f"{its.memory / 1e6:.0f}",
            )
        one, five = best
        table.add_row(
            f"{name}: times less", f"{five.wall / one.wall:.2f}", f"{five.cpu / one.cpu:.2f}",
            f"{five.read / one.read:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(f"{given.model}: {n_source / 1e9:.2f} GB, {given.threads} threads, same sha256")
    console.print(table)


if __name__ == "__main__":
    main()
