#!/usr/bin/env python3
"""What the machinery around the encoders takes: reading, hashing, journal, writing, threads.

    python scripts/models/make_synthetic_llama.py /tmp/synthetic
    python scripts/bench/bench_engine.py /tmp/synthetic [--repeats 3] [--only copies|parts]

Two tables, in which the rows of each take turns. Copies: conversions that hardly compute beside
`cat` and `dd` of the same files, alone and with sha256sum; bytes are those read and written, and
each is synced at its end, as a conversion is. Parts: an encoding-bound recipe on two threads and on
one, and without its hashes, checksums, syncs, sample and figures of errors, one after the other.
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
from dynquant.conversion import digest, stages
from dynquant.conversion.write import SYNC_SECONDS, convert_plan
from dynquant.quants import codec
from dynquant.quants.error import NO_ERROR

def nothing(digits):
    def update(self, *_): pass
    def hexdigest(self): return "0" * digits
    return type("Nothing", (), {"__init__": update, "update": update, "hexdigest": hexdigest})

model, out, recipe, threads, without = sys.argv[1:]
if "files" in without:
    digest.hashlib = type("hashlib", (), {"sha256": nothing(64)})
if "tensors" in without:
    digest.xxhash = type("xxhash", (), {"xxh64": nothing(16)})
if "checksums" in without:
    stages.xxhash = type("xxhash", (), {"xxh3_64_intdigest": lambda _: 0})
if "errors" in without:
    codec.error_sums = lambda *_: NO_ERROR
plan = dynquant.make_plan(dynquant.load_model(model), dynquant.load_recipe(recipe))
convert_plan(
    plan,
    Path(out),
    threads=int(threads),
    force=True,
    manifest="none" if "sources" in without else "auto",
    verify_sample=0 if "sample" in without else 8,
    sync_seconds=1e9 if "syncs" in without else SYNC_SECONDS,
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


def copies(model: Path, out: Path, repeats: int) -> Table:
    """Return what conversions that hardly compute take beside copies of the same files."""
    files = sorted(map(str, model.glob("*.safetensors")))
    n_read = sum(Path(f).stat().st_size for f in files)

    def shell(text: str) -> list[str]:
        return ["/bin/bash", "-c", f'o=$1; shift; {text}; sync "$o"', "bash", str(out), *files]

    both = 'sha256sum "$@" > /dev/null & cat "$@" | tee "$o" | sha256sum > /dev/null; wait'
    rows = [
        Row("cat", shell('cat "$@" > "$o"')),
        Row("dd bs=1M", shell('for f; do dd if="$f" bs=1M status=none; done > "$o"')),
        Row("cat, sha256sum of files and copy", shell(both)),
    ]
    for recipe in ("bf16", "f16", "q8_0"):
        for n in (1, 2):
            name = f"{recipe}, {n} thread{'s' * (n > 1)}"
            rows += [
                Row(f"{name}, without hashes", converted(model, out, recipe, n, "sources files")),
                Row(name, converted(model, out, recipe, n)),
            ]
    table = _table("copies", "GB/s, read and written")
    for row, best in zip(rows, measured(rows, out, repeats), strict=True):
        rate = (n_read + best.written) / best.wall / 1e9
        table.add_row(row.name, f"{best.wall:.2f}", f"{best.cpu:.2f}", f"{rate:.2f}")
    return table


def parts(model: Path, out: Path, repeats: int, recipe: str) -> Table:
    """Return what a conversion takes without each of its parts, and on one thread."""
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
    rows = [Row(name, converted(model, out, recipe, *way)) for name, way in ways.items()]
    table = _table(recipe, "of 2 threads: wall", "CPU")
    runs = measured(rows, out, repeats)
    for row, best in zip(rows, runs, strict=True):
        shares = (best.wall / runs[0].wall, best.cpu / runs[0].cpu)
        table.add_row(
            row.name, f"{best.wall:.2f}", f"{best.cpu:.2f}", *(f"{s:.1%}" for s in shares)
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipe", default="dynamic-4bit", help="an encoding-bound one")
    parser.add_argument("--only", choices=("copies", "parts"))
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=given.model.parent) as scratch:
        out = Path(scratch) / "x.gguf"
        if given.only != "parts":
            console.print(copies(given.model, out, given.repeats))
        if given.only != "copies":
            console.print(parts(given.model, out, given.repeats, given.recipe))


def _table(name: str, *columns: str) -> Table:
    table = Table(box=None)
    table.add_column(name)
    for column in ("wall s", "CPU s", *columns):
        table.add_column(column, justify="right")
    return table


if __name__ == "__main__":
    main()
