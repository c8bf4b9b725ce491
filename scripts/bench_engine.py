#!/usr/bin/env python3
"""What the machinery around the encoders takes: reading, hashing, journal, writing, threads.

    python scripts/make_synthetic_llama.py /tmp/synthetic
    python scripts/bench_engine.py /tmp/synthetic [--repeats 3]

Three tables from one run, in which the rows of each take turns. Copies: conversions that hardly
compute beside `cat` and `dd` of the same files; bytes are those read and written, and each is
synced at its end, as a conversion is. Threads: an encoding-bound recipe on one and on two. Parts:
the same recipe without hashes of files and tensors, the checksums of the journal, its syncs.
Wall time is the best of the repeats, CPU time its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench_convert import Run, run
from rich.console import Console
from rich.table import Table

CONVERT = """
import sys
from pathlib import Path
import dynquant
from dynquant.conversion import digest, engine, run
from dynquant.conversion.engine import convert_plan
from dynquant.quants.error import NO_ERROR

class Nothing:
    def __init__(self, *_): pass
    def update(self, _): pass
    def hexdigest(self): return ""

model, out, recipe, threads, without = sys.argv[1:]
if "files" in without:
    digest.hashlib = type("hashlib", (), {"sha256": Nothing})
if "tensors" in without:
    digest.xxhash = type("xxhash", (), {"xxh64": Nothing})
if "checksums" in without:
    run.xxhash = type("xxhash", (), {"xxh3_64_intdigest": lambda _: 0})
if "errors" in without:
    run.codec.error_sums = lambda *_: NO_ERROR
plan = dynquant.make_plan(dynquant.load_model(model), dynquant.load_recipe(recipe))
convert_plan(
    plan,
    Path(out),
    threads=int(threads),
    force=True,
    manifest="none" if "sources" in without else "auto",
    verify_sample=0 if "sample" in without else 8,
    sync_seconds=1e9 if "syncs" in without else engine.SYNC_SECONDS,
)
"""


@dataclass(frozen=True)
class Row:
    """One way to spend time."""

    name: str
    command: list[str]


def converted(model: Path, out: Path, recipe: str, threads: int, without: str = "") -> list[str]:
    """Return the command of one conversion."""
    return [sys.executable, "-c", CONVERT, str(model), str(out), recipe, str(threads), without]


def measured(rows: list[Row], out: Path, repeats: int) -> list[Run]:
    """Run the rows in turns; return the quickest of each."""
    found: list[list[Run]] = [[] for _ in rows]
    for _ in range(repeats):
        for row, runs in zip(rows, found, strict=True):
            runs.append(run(row.command, out))
            out.unlink()
    return [min(runs, key=lambda r: r.wall) for runs in found]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipe", default="dynamic-4bit", help="an encoding-bound one")
    given = parser.parse_args()
    files = sorted(map(str, given.model.glob("*.safetensors")))
    n_read = sum(Path(f).stat().st_size for f in files)
    console = Console()
    with tempfile.TemporaryDirectory(dir=given.model.parent) as scratch:
        out = Path(scratch) / "x.gguf"

        def shell(text: str) -> list[str]:
            return ["/bin/sh", "-c", text, "sh", str(out), *files]

        copies = [
            Row("cat, synced", shell('o=$1; shift; cat "$@" > "$o" && sync "$o"')),
            Row(
                "dd bs=1M conv=fsync", shell('o=$1; shift; cat "$@" | dd of="$o" bs=1M conv=fsync')
            ),
        ]
        copies += [
            Row(f"{recipe}, {n} thread{'s' * (n > 1)}", converted(given.model, out, recipe, n))
            for recipe in ("bf16", "f16", "q8_0")
            for n in (1, 2)
        ]
        table = _table("copies", "GB/s, read and written")
        for row, best in zip(copies, measured(copies, out, given.repeats), strict=True):
            rate = (n_read + best.written) / best.wall / 1e9
            table.add_row(row.name, f"{best.wall:.2f}", f"{best.cpu:.2f}", f"{rate:.2f}")
        console.print(table)

        recipe = given.recipe
        ways = {
            "2 threads": (2, ""),
            "1 thread": (1, ""),
            "without sha256 of the sources": (2, "sources"),
            "without sha256 of the output": (2, "files"),
            "without xxh64 of tensors": (2, "tensors"),
            "without the journal's checksums": (2, "checksums"),
            "without its syncs": (2, "syncs"),
            "without the sample": (2, "sample"),
            "without any of these": (2, "sources files tensors checksums syncs sample"),
            "without figures of errors": (2, "errors"),
        }
        rows = [Row(name, converted(given.model, out, recipe, *way)) for name, way in ways.items()]
        table = _table(recipe, "of 2 threads: wall", "CPU")
        runs = measured(rows, out, given.repeats)
        for row, best in zip(rows, runs, strict=True):
            shares = (best.wall / runs[0].wall, best.cpu / runs[0].cpu)
            table.add_row(
                row.name, f"{best.wall:.2f}", f"{best.cpu:.2f}", *(f"{s:.1%}" for s in shares)
            )
        console.print(table)


def _table(name: str, *columns: str) -> Table:
    table = Table(box=None)
    table.add_column(name)
    for column in ("wall s", "CPU s", *columns):
        table.add_column(column, justify="right")
    return table


if __name__ == "__main__":
    main()
