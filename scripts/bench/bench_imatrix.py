#!/usr/bin/env python3
"""`dynquant imatrix` beside llama-imatrix and its detour: seconds, memory and disk.

    pip install -e '.[dev,calibrate]'
    python scripts/bench/bench_imatrix.py FOLDER LLAMA_IMATRIX [--kinds llama,mixture]
        [--chunks 8] [--context 512] [--threads 2] [--repeats 1]

FOLDER gets the FP8 checkpoints of `make_synthetic_fp8.py`, unless it has them: a Llama of 1e9
weights and a mixture of 3e9. LLAMA_IMATRIX is llama.cpp's program, which needs an F16 GGUF first:
`dynquant convert -r f16` writes it, and its time and disk are a line of the table. Both programs
read the same windows of the texts that are part of dynquant. Runs take turns, and the quickest of
each is printed. Memory is the largest resident size of the process, with the pages of files that
it maps. Disk are the files that a step writes and leaves.

The limit is the time of the layers' matrix products at the rate that torch reaches in products of
2048 x 2048 x 8192 in float32, one for each thread at once. The difference of the sums (relative, of
norms, without experts) shows that both do the same work; F16 rounds the weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_convert import Run, run
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.calibrate.shipped import shipped_texts
from dynquant.importance.imatrix import Imatrix, read_imatrix

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from make_synthetic_fp8 import CONFIGS, write_model

# Prints the floating-point operations of a second, of all threads together.
RATE = """
import sys, threading, time
import torch
n = int(sys.argv[1])
torch.set_num_threads(1)
a, b = torch.randn(2048, 2048), torch.randn(8192, 2048)
best = [1e9] * n
def product(thread):
    torch.set_num_threads(1)
    for _ in range(6):
        started = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best[thread] = min(best[thread], time.perf_counter() - started)
threads = [threading.Thread(target=product, args=(i,)) for i in range(n)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(2 * 2048 * 2048 * 8192 / seconds for seconds in best))
"""


@dataclass(frozen=True)
class Options:
    """What is run: windows, their tokens, and threads."""

    chunks: int
    context: int
    threads: int

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return self.chunks * self.context


def operations(model: dynquant.Model, tokens: int, n_chosen: int) -> int:
    """Return the floating-point operations of the layers' matrices."""
    matrices = [t for t in model.tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    weights = sum(
        int(np.prod(t.shape[-2:])) * (n_chosen if len(t.shape) == 3 else 1) for t in matrices
    )
    return 2 * weights * tokens


def steps(model: Path, scratch: Path, text: Path, program: Path, given: Options) -> dict[str, Run]:
    """Run ours, the detour and llama-imatrix once."""
    f16, ours, theirs = (scratch / name for name in ("f16.gguf", "ours.gguf", "theirs.gguf"))
    python = [sys.executable, "-P", "-m", "dynquant.cli"]
    threads, windows = str(given.threads), str(given.chunks)
    size = ["-c", str(given.context), "--chunks", windows]
    own = [*python, "imatrix", str(model), "--text", str(text), *size, "--threads", threads]
    convert = [*python, "convert", str(model), "-r", "f16", "--threads", threads, "--force"]
    other = [str(program), "-m", str(f16), "-f", str(text), *size, "-t", threads, "--no-ppl"]
    return {
        "dynquant imatrix": run([*own, "-o", str(ours), "--force"], ours),
        "dynquant convert -r f16": run([*convert, "-o", str(f16)], f16),
        "llama-imatrix": run([*other, "-o", str(theirs)], theirs),
    }


def difference(theirs: Imatrix, ours: Imatrix) -> float:
    """Return the largest relative difference of a tensor's sums of squares, without experts.

    Llama-imatrix also has the routers, which are never quantized.
    """
    largest = 0.0
    for name, entry in theirs.entries.items():
        if "_exps." not in name and "_inp." not in name:
            a, b = (e.sums(0, e.n_values).astype(np.float64) for e in (entry, ours.entries[name]))
            largest = max(largest, float(np.linalg.norm(a - b) / np.linalg.norm(a)))
    return largest


def measured(
    kind: str, folder: Path, text: Path, program: Path, given: Options, repeats: int
) -> Table:
    """Run all steps for a model; return the table."""
    model = folder / kind
    if not (model / "config.json").exists():
        write_model(kind, model)
    command = [sys.executable, "-c", RATE, str(given.threads)]
    rate = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    runs = [steps(model, folder, text, program, given) for _ in range(repeats)]
    best = {step: min((r[step] for r in runs), key=lambda r: r.wall) for step in runs[0]}
    n_chosen = CONFIGS[kind].get("num_experts_per_tok", 1)
    limit = operations(dynquant.load_model(model), given.tokens, n_chosen) / rate
    found = difference(read_imatrix(folder / "theirs.gguf"), read_imatrix(folder / "ours.gguf"))
    (folder / "f16.gguf").unlink()
    table = Table(
        box=None,
        title=f"{kind}: {given.chunks} windows of {given.context} tokens, {given.threads} threads;"
        f" limit {limit:.1f} s at {rate / 1e9:.0f} GFLOP/s; difference of the sums {found:.1e}",
    )
    table.add_column("")
    for column in ("wall s", "CPU s", "tokens/s", "limit / wall", "peak GB", "disk GB"):
        table.add_column(column, justify="right")
    detour = list(best.values())[1:]
    rows = {**best, "convert and llama-imatrix": added(detour)}
    for name, step in rows.items():
        runs_model = "imatrix" in name
        table.add_row(
            name,
            f"{step.wall:.1f}",
            f"{step.cpu:.1f}",
            f"{given.tokens / step.wall:.1f}" if runs_model else "",
            f"{limit / step.wall:.0%}" if runs_model else "",
            f"{step.memory / 1e9:.2f}",
            f"{step.written / 1e9:.3f}",
        )
    own, both = best["dynquant imatrix"], rows["convert and llama-imatrix"]
    ratios = own.wall / both.wall, own.cpu / both.cpu, own.memory / both.memory
    table.add_row(
        "dynquant / both", f"{ratios[0]:.2f}", f"{ratios[1]:.2f}", "", "", f"{ratios[2]:.2f}"
    )
    return table


def added(steps: list[Run]) -> Run:
    """Return what steps take one after the other."""
    return Run(
        sum(s.wall for s in steps),
        sum(s.cpu for s in steps),
        max(s.memory for s in steps),
        sum(s.written for s in steps),
    )


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("program", type=Path)
    parser.add_argument("--kinds", default=",".join(CONFIGS))
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    text = given.folder / "text.txt"
    text.write_bytes(b"\n\n".join(t.content for t in shipped_texts()))
    options = Options(given.chunks, given.context, given.threads)
    for kind in given.kinds.split(","):
        table = measured(kind, given.folder, text, given.program, options, given.repeats)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
