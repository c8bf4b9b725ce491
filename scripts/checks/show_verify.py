#!/usr/bin/env python3
"""Show which single flipped bits `dynquant verify` finds in each part of a file, and its speed.

    python scripts/checks/show_verify.py [--flips 20] [--file LARGE.gguf [--threads 2]]

Converts tiny-books to one type after the other and flips single bits in each part of the file, with
and without the manifest. Without it, only bits that make a file invalid can be found, not a valid
code that becomes another valid code. The gguf package gives the offsets of the parts. With --file,
also measures the time to verify that file, with and without its manifest, and to
compute its `sha256sum`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random

import gguf
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.conversion.manifest import manifest_path
from dynquant.verification.verify import verify

ROOT = Path(__file__).resolve().parents[2]
TINY_BOOKS = ROOT / "tests" / "data" / "tiny-books"
sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from bench_convert import run  # noqa: E402

BLOCKS = {
    "Q8_0": (34, {"scale": (0, 2), "codes": (2, 34)}),
    "Q4_0": (18, {"scale": (0, 2), "codes": (2, 18)}),
    "IQ4_NL": (18, {"scale": (0, 2), "codes": (2, 18)}),
    "Q5_1": (24, {"scale": (0, 2), "minimum": (2, 4), "high bits": (4, 8), "codes": (8, 24)}),
    "MXFP4": (17, {"exponent": (0, 1), "codes": (1, 17)}),
    "F32": (4, {"low half": (0, 2), "high half": (2, 4)}),
}
"""Bytes of a block, and the byte ranges of its parts."""


def parts_of(path: Path, type_name: str) -> dict[str, list[tuple[int, int]]]:
    """Return the ranges of bytes of each part of a file."""
    reader = gguf.GGUFReader(path)
    found = {"magic": [(0, 4)], "version": [(4, 8)], "counts of tensors, keys": [(8, 24)]}
    names: list[tuple[int, int]] = []
    values: list[tuple[int, int]] = []
    for field in reader.fields.values():
        if field.name.startswith("GGUF."):
            continue
        sizes = [int(part.nbytes) for part in field.parts]
        start = field.offset
        names.append((start, start + sum(sizes[:2])))
        values.append((start + sum(sizes[:2]), start + sum(sizes)))
    found["names of keys"], found["types and values of keys"] = names, values
    for number, what in enumerate(("names", "dimensions", "shapes", "types", "offsets")):
        ranges: list[tuple[int, int]] = []
        for tensor in reader.tensors:
            sizes = [int(part.nbytes) for part in tensor.field.parts]
            sizes = [sizes[0] + sizes[1], *sizes[2:]]
            start = tensor.field.offset + sum(sizes[:number])
            ranges.append((start, start + sizes[number]))
        found[f"table of tensors: {what}"] = ranges
    data = [(int(t.data_offset), int(t.data_offset + t.n_bytes)) for t in reader.tensors]
    ends = [*(start for start, _ in data[1:]), path.stat().st_size]
    padding = [(stop, end) for (_, stop), end in zip(data, ends, strict=True) if stop < end]
    if padding:
        found["padding"] = padding
    for name in (type_name, "F32"):
        size, parts = BLOCKS[name]
        of_type = [t for t in reader.tensors if t.tensor_type.name == name]
        for part, (start, stop) in parts.items():
            found[f"{name}: {part}"] = [
                (at + start, at + stop)
                for t in of_type
                for at in range(int(t.data_offset), int(t.data_offset + t.n_bytes), size)
            ]
    return found


def flipped(path: Path, at: int, bit: int) -> list[str]:
    """Return the faults that are found while a bit is flipped."""
    _flip(path, at, bit)
    try:
        return [str(fault) for fault in verify(path, threads=1).faults]
    finally:
        _flip(path, at, bit)


def _flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def flips(folder: Path, n: int, rng: Random) -> Table:
    """Return a table of how many of n flips are found in each part of files of each type."""
    table = Table(box=None)
    table.add_column("part")
    for column in ("flips", "found with manifest", "without"):
        table.add_column(column, justify="right")
    table.add_column("first fault reported with manifest")
    seen: set[str] = set()
    for type_name in BLOCKS:
        path = folder / f"{type_name}.gguf"
        (folder / f"{type_name}.yaml").write_text(f"default: {type_name}\n")
        dynquant.convert(TINY_BOOKS, path, recipe=folder / f"{type_name}.yaml")
        bare = folder / "bare" / path.name
        bare.parent.mkdir(exist_ok=True)
        shutil.copy(path, bare)
        for part, ranges in parts_of(path, type_name).items():
            if part in seen:
                continue
            seen.add(part)
            faults: list[list[str]] = []
            without = 0
            for _ in range(n):
                at, bit = rng.randrange(*rng.choice(ranges)), rng.randrange(8)
                faults.append(flipped(path, at, bit))
                without += bool(flipped(bare, at, bit))
            first = faults[0][0].replace(str(path), path.name) if faults[0] else ""
            with_it = sum(map(bool, faults))
            table.add_row(part, str(n), f"{with_it / n:.0%}", f"{without / n:.0%}", first[:90])
    return table


def times(path: Path, folder: Path, threads: int) -> Table:
    """Return a table of the time to verify a file, with and without manifest, and of sha256sum."""
    bare = folder / path.name
    bare.hardlink_to(path)
    verifying = [sys.executable, "-m", "dynquant.cli", "verify", "--quiet", "--threads"]
    rows = {
        "sha256sum": ["/usr/bin/env", "sha256sum", str(path)],
        f"verify, {threads} threads": [*verifying, str(threads), str(path)],
        f"verify without manifest, {threads} threads": [*verifying, str(threads), str(bare)],
    }
    if not manifest_path(path).exists():
        raise SystemExit(f"{path}: has no manifest")
    table = Table(box=None)
    table.add_column(f"{path.stat().st_size:,} bytes")
    for column in ("wall s", "CPU s", "wall s per GB", "CPU s per GB"):
        table.add_column(column, justify="right")
    size = path.stat().st_size / 1e9
    for name, command in rows.items():
        best = min((run(command, path) for _ in range(3)), key=lambda r: r.wall)
        seconds = (best.wall, best.cpu, best.wall / size, best.cpu / size)
        table.add_row(name, *(f"{s:.2f}" for s in seconds))
    return table


def main() -> None:
    """Flip, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=20, help="flips in each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="a large GGUF with its manifest")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    console = Console(width=180)
    with tempfile.TemporaryDirectory(dir=given.file and given.file.parent) as scratch:
        if given.file:
            console.print(times(given.file, Path(scratch), given.threads))
        console.print(flips(Path(scratch), given.flips, Random(given.seed)))


if __name__ == "__main__":
    main()
