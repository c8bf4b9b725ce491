"""Our imatrix beside llama-imatrix's, from the same model and text, in one run.

    pip install -e '.[dev,calibrate]'
    python scripts/checks/compare_imatrix.py LLAMA_IMATRIX MODEL... --text FILE [--chunks 4]
        [--context 64] [--threads 2] [--quantize LLAMA_QUANTIZE]

LLAMA_IMATRIX is the program, built from llama.cpp's source. A checkpoint is converted to F32 for
it, and it computes with F32 caches and plain attention. For each model: the largest relative
difference of a tensor's sums of squares (of norms), the tensor, how many tensors have other counts,
what only llama-imatrix has, and the seconds of both programs. With --quantize, llama-quantize also
writes Q4_0 with our file, with our file without signed sums, and without a file; the first two must
be the same. The column shows how many tensors our file changes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.importance.imatrix import Imatrix, read_imatrix, write_imatrix

EXACT = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")


def timed(command: list[str]) -> float:
    """Run a program; return its seconds."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {command[0]}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def compared(theirs: Imatrix, ours: Imatrix) -> tuple[float, str, int, list[str]]:
    """Return the largest difference, its tensor, how many counts differ, and missing roles."""
    largest, where, counts = 0.0, "", 0
    missing: set[str] = set()
    for name, entry in theirs.entries.items():
        own = ours.entries.get(name)
        if own is None or own.n_values != entry.n_values:
            missing.add(name.split(".", 2)[-1])
            continue
        a = entry.sums(0, entry.n_values).astype(np.float64)
        b = own.sums(0, own.n_values)
        difference = float(np.linalg.norm(a - b) / np.linalg.norm(a))
        counts += entry.counts != own.counts
        if not difference <= largest:
            largest, where = difference, name
    return largest, where, counts, sorted(missing)


def quantized(program: Path, model: Path, imatrix: Path | None, out: Path) -> dict[str, bytes]:
    """Return the bytes of all tensors that llama-quantize writes."""
    given = [] if imatrix is None else ["--imatrix", str(imatrix)]
    timed([str(program), *given, str(model), str(out), "Q4_0", "1"])
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(out).tensors}


def changed(program: Path, model: Path, ours: Path, folder: Path) -> int:
    """Return how many tensors llama-quantize writes otherwise because of our file."""
    found = read_imatrix(ours)
    plain, out = folder / "plain.gguf", folder / "q.gguf"
    entries = {
        name: (entry.sums(0, entry.n_values).reshape(entry.n_rows, -1), entry.counts)
        for name, entry in found.entries.items()
    }
    chunks = {"chunk_count": found.chunk_count or 0, "chunk_size": found.chunk_size or 0}
    write_imatrix(plain, entries, datasets=found.datasets, **chunks)
    one, two, without = (quantized(program, model, file, out) for file in (ours, plain, None))
    if one != two:
        sys.exit(f"error: {model}: llama-quantize writes other bytes because of signed sums")
    return sum(one[name] != without[name] for name in one)


def main() -> None:
    """Run both for each model and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quantize", type=Path, metavar="LLAMA_QUANTIZE")
    given = parser.parse_args()
    table = Table(box=None)
    columns = ["model", "difference", "tensor", "other counts", "only theirs", "s", "theirs"]
    for column in columns + ["changed"] * bool(given.quantize):
        table.add_column(column, overflow="fold")
    size, n, threads = map(str, (given.context, given.chunks, given.threads))
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models:
            file, theirs, ours = (Path(folder, name) for name in ("m.gguf", "a.gguf", "b.gguf"))
            if model.is_dir():
                dynquant.convert(model, file, recipe="f32", force=True)
            source = file if model.is_dir() else model
            command = [
                str(given.program),
                "-m",
                str(source),
                "-f",
                str(given.text),
                "-o",
                str(theirs),
            ]
            command += ["-c", size, "-b", size, "-ub", size, "--chunks", n, "-t", threads]
            command += [*EXACT, "--process-output"]
            their_seconds = timed(command)
            command = [sys.executable, "-m", "dynquant", "imatrix", str(model), "-o", str(ours)]
            command += ["--text", str(given.text), "-c", size, "--chunks", n, "--force"]
            seconds = timed([*command, "--threads", threads])
            found = compared(read_imatrix(theirs), read_imatrix(ours))
            difference, where, counts, missing = found
            times = f"{seconds:.1f}", f"{their_seconds:.1f}"
            row = (f"{difference:.1e}", where, str(counts), ", ".join(missing))
            if given.quantize:
                n_changed = changed(given.quantize, source, ours, Path(folder))
                times = *times, str(n_changed)
            table.add_row(model.name, *row, *times)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
