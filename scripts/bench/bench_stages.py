#!/usr/bin/env python3
"""Where the CPU time of a conversion goes, stage by stage, beside what each stage takes at least.

    python scripts/models/make_synthetic_llama.py /tmp/synthetic
    python scripts/bench/bench_stages.py /tmp/synthetic [--recipes q8_0,dynamic-4bit] \
        [--threads 1] [--repeats 3] [--cores 128]

Each conversion runs in a separate process. The stages are timed by the CPU clock of their thread,
user and system together. The rest of the process's CPU time is the interpreter: jobs, locks,
manifest. The recipes take turns, and the run with the median CPU time is shown. `at least` is the
kernel of a stage in a loop over one piece that stays in the cache, measured in the same run.

The last lines simulate a run on --cores cores. Threads cannot share the interpreter's lock and the
hashes that are computed in the order of a file. The CPU time of one thread outside of all stages is
an upper limit of the time under the lock. All other work is divided among the cores.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from blake3 import blake3
from rich.console import Console
from rich.table import Table

from dynquant.quants import ALL, encode
from dynquant.quants.codec import encode_floats, error_sums

PIECE = 1 << 20
CALLS = 8
"""Of one round: a clock of the CPU may be coarse."""

CONVERT = """
import json, sys, threading, time
from collections import Counter
from pathlib import Path

spent, calls, stack, lock = Counter(), Counter(), threading.local(), threading.Lock()

def timed(name, function):
    def call(*given, **named):
        its = stack.__dict__
        outer, its["inner"] = its.get("inner", 0), 0
        start = time.thread_time_ns()
        try:
            return function(*given, **named)
        finally:
            took = time.thread_time_ns() - start
            with lock:
                spent[name] += took - its["inner"]
                calls[name] += 1
            its["inner"] = outer + took
    return call

def patch(owner, name, stage):
    setattr(owner, name, timed(stage, getattr(owner, name)))

model, out, recipe, threads = sys.argv[1:]
import dynquant
from dynquant.conversion import digest, engine, output, source_hashes, stages, write
from dynquant.quants import codec
plan = dynquant.make_plan(dynquant.load_model(model), dynquant.load_recipe(recipe))
started = time.process_time_ns()

class Timed:
    def __init__(self, stage, digest):
        self.digest, self.update = digest, timed(stage, digest.update)
    def hexdigest(self):
        return self.digest.hexdigest()

class Module:
    def __init__(self, module, **made):
        self.__dict__ |= vars(module) | made

sha256, xxh64 = digest.hashlib.sha256, digest.xxhash.xxh64
digest.hashlib = Module(digest.hashlib, sha256=lambda *a: Timed("sha256 of the output", sha256(*a)))
digest.xxhash = Module(digest.xxhash, xxh64=lambda *a: Timed("xxh64 of tensors", xxh64(*a)))
stages.xxhash = Module(stages.xxhash)
patch(stages.xxhash, "xxh3_64_intdigest", "checksums of the journal")
patch(codec, "encode_floats", "encode")
patch(codec, "error_sums", "errors")
patch(source_hashes._Hashing, "step", "hashes of the sources")
patch(stages.SourceStage, "read", "read the rows")
patch(output.PartFiles, "write", "write")
patch(output.PartFiles, "sync", "sync")
patch(write, "check_sample", "sample")
write.convert_plan(plan, Path(out), threads=int(threads), force=True, manifest="auto")
print(json.dumps({
    "spent": {k: v / 1e9 for k, v in spent.items()},
    "calls": calls,
    "start": started / 1e9,
    "total": time.process_time_ns() / 1e9,
    "weights": {
        t: sum(p.n_weights for p in plan.tensors if p.type.name == t) for t in plan.type_counts
    },
    "bytes": sum(p.stat().st_size for p in Path(model).glob("*.safetensors")),
}))
"""


@dataclass(frozen=True)
class Stages:
    """What one conversion spent. Seconds of CPU time by stage, and sizes."""

    spent: dict[str, float]
    calls: dict[str, int]
    start: float
    total: float
    weights: dict[str, int]
    bytes: int
    written: int

    @property
    def n_weights(self) -> int:
        """Weights of all types."""
        return sum(self.weights.values())

    @property
    def interpreter(self) -> float:
        """Seconds outside of all stages, after the plan."""
        return self.total - self.start - sum(self.spent.values())


def converted(model: Path, out: Path, recipe: str, threads: int) -> Stages:
    """Convert in a separate process; return what it spent."""
    command = [sys.executable, "-c", CONVERT, str(model), str(out), recipe, str(threads)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return Stages(**found, written=out.stat().st_size)


def rate(work: Callable[[], object], n: float, seconds: float = 0.2) -> float:
    """Return seconds of CPU time for each of n units, the least of several rounds of calls."""
    least, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.thread_time_ns()
        for _ in range(CALLS):
            work()
        least = min(least, time.thread_time_ns() - start)
    return least / CALLS / n / 1e9


def limits(folder: Path) -> dict[str, float]:
    """Return seconds for each byte of the kernels that do not depend on the recipe."""
    piece = np.random.default_rng(0).integers(0, 256, PIECE, np.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.pwrite(file.fileno(), piece.data, 0)
        return {
            "read the rows": rate(lambda: os.preadv(file.fileno(), [piece], 0), PIECE),
            "write": rate(lambda: os.pwrite(file.fileno(), piece.data, 0), PIECE),
            "hashes of the sources": rate(lambda: blake3(piece.data), PIECE),
            "sha256 of the output": rate(lambda: hashlib.sha256(piece.data), PIECE),
            "xxh64 of tensors": rate(lambda: xxhash.xxh64(piece.data), PIECE),
            "checksums of the journal": rate(lambda: xxhash.xxh3_64(piece.data), PIECE),
        }


def least_seconds(stages: Stages, kernels: dict[str, float]) -> dict[str, float]:
    """Return what each stage takes at least, in seconds; stages without a kernel are left out."""
    found = {
        stage: seconds * (stages.bytes if "source" in stage or "read" in stage else stages.written)
        for stage, seconds in kernels.items()
    }
    for name, n in stages.weights.items():
        for stage, seconds in of_weights(name).items():
            found[stage] = found.get(stage, 0.0) + seconds * n
    return found


def of_weights(name: str) -> dict[str, float]:
    """Return seconds for each weight of a type's kernels, from BF16 without importance."""
    x = (0.02 * np.random.default_rng(0).standard_normal((128, 4096))).astype(np.float32)
    rows, qtype = encode(x, ALL["BF16"]).reshape(-1), ALL[name]
    blocks = np.empty(len(x) * qtype.row_size(x.shape[1]), np.uint8)
    floats = np.empty(x.nbytes, np.uint8)
    given = rows, ALL["BF16"], x.shape[1]
    return {
        "encode": rate(lambda: encode_floats(*given, qtype, blocks), x.size),
        "to f32": rate(lambda: encode_floats(*given, ALL["F32"], floats), x.size),
        "errors": rate(lambda: error_sums(*given, qtype, blocks), x.size),
    }


def median(runs: list[Stages]) -> Stages:
    """Return the run in the middle by its CPU time."""
    return sorted(runs, key=lambda r: r.total)[len(runs) // 2]


def shown(recipe: str, stages: Stages, least: dict[str, float]) -> Table:
    """Return the table of one recipe."""
    title = f"{recipe}: {stages.n_weights / 1e9:.3f}e9 weights, {stages.total:.2f} s of CPU time"
    table = Table(title=title, box=None)
    table.add_column("stage")
    for column in ("CPU s", "%", "ns per weight", "at least s", "calls"):
        table.add_column(column, justify="right")
    rows = {"start and plan": stages.start, **stages.spent, "interpreter": stages.interpreter}
    for stage, seconds in sorted(rows.items(), key=lambda row: -row[1]):
        table.add_row(
            stage,
            f"{seconds:.2f}",
            f"{100 * seconds / stages.total:.1f}",
            f"{1e9 * seconds / stages.n_weights:.3f}",
            f"{least[stage]:.2f}" if stage in least else "",
            f"{stages.calls.get(stage, 1):,}",
        )
    table.add_row("  of encode: to f32", "", "", "", f"{least['to f32']:.2f}", "")
    return table


def bounds(stages: Stages, cores: int) -> list[str]:
    """Return what a run on many cores would be bound by, from the stages of one thread.

    Threads share the interpreter's lock and the hashes that run in order: the sha256 of one output
    file, and of each source file. Everything else is divided among the cores.
    """
    mib = stages.bytes / 2**20
    ordered = stages.spent["sha256 of the output"] + stages.spent["xxh64 of tensors"]
    shared = (stages.total - stages.start - stages.interpreter) / cores
    found = {
        "the interpreter's lock": stages.interpreter,
        "hashes in the order of one output file": ordered,
        f"all stages on {cores} cores": shared,
    }
    slowest = max(found, key=lambda name: found[name])
    return [
        f"  {name}: {1e3 * seconds / mib:.3f} ms for each MiB read, {mib / seconds:,.0f} MiB/s"
        + (" <- the bound" if name == slowest else "")
        for name, seconds in found.items()
    ]


def main() -> None:
    """Measure what the command line asks for and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--recipes", default="q8_0,dynamic-4bit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=128)
    given = parser.parse_args()
    recipes = given.recipes.split(",")
    runs: dict[str, list[Stages]] = {recipe: [] for recipe in recipes}
    with tempfile.TemporaryDirectory(dir=given.model.parent) as scratch:
        for _ in range(given.repeats):
            for recipe in recipes:
                out = Path(scratch) / "x.gguf"
                runs[recipe].append(converted(given.model, out, recipe, given.threads))
        kernels = limits(Path(scratch))
    console = Console(width=110)
    for recipe in recipes:
        stages = median(runs[recipe])
        console.print(shown(recipe, stages, least_seconds(stages, kernels)))
        print(f"{recipe} on {given.cores} cores, from {given.threads} thread(s):")
        print("\n".join(bounds(stages, given.cores)))


if __name__ == "__main__":
    main()
