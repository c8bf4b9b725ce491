#!/usr/bin/env python3
"""A whole conversion beside llama.cpp's two steps: wall time, CPU time, peak memory, bytes written.

    python scripts/models/make_synthetic_llama.py /tmp/synthetic
    python scripts/bench/bench_convert.py /tmp/synthetic --llama-cpp PATH --repeats 3 \
        [--quantize PROGRAM] [--peer-python PYTHON] [--before PYTHON]

llama.cpp runs as `convert_hf_to_gguf.py` of the llama.cpp tree at PATH (which needs torch and
transformers), then its quantizer: the program llama-quantize at PROGRAM, or without --quantize
`llama_model_quantize` of llama-cpp-python. All are to be installed by hand. Each step is a separate
process; memory is its largest resident size. Runs alternate, ours and llama.cpp's, and medians are
printed. Without --llama-cpp only ours runs.
--peer-python is the interpreter with llama.cpp's packages (default: this one); --before is the
interpreter of an environment with an earlier dynquant, which then runs in turn, too. The sha256 of
ours for 1, 2 and 7 threads closes the report.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

# llama.cpp's quantizer, as llama-quantize calls it: source, output, name of the ftype, threads.
QUANTIZE = """
import sys, llama_cpp
source, output, ftype, threads = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + ftype)
params.nthread = int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), output.encode(), params))
"""


@dataclass(frozen=True)
class Run:
    """What one process took. Seconds and bytes."""

    wall: float
    cpu: float
    memory: int
    written: int


def run(command: list[str], output: Path) -> Run:
    """Run one step to its end; raise SystemExit if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        outputs = [(os.POSIX_SPAWN_DUP2, log.fileno(), fd) for fd in (1, 2)]
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=outputs)
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - start
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read().decode(errors='replace')}")
    cpu = usage.ru_utime + usage.ru_stime
    return Run(wall, cpu, usage.ru_maxrss * 1024, output.stat().st_size)


def ours(
    model: Path,
    output: Path,
    recipe: str,
    threads: int,
    more: Sequence[str] = (),
    python: str = sys.executable,
) -> list[Run]:
    """Convert with dynquant, in one step.

    more: options for it; python: the interpreter of its environment
    """
    command = [python, "-P", "-m", "dynquant.cli", "convert", str(model), "-o", str(output)]
    command += ["--recipe", recipe, "--threads", str(threads), "--force", *more]
    return [run(command, output)]


def llama_cpp_steps(
    model: Path,
    folder: Path,
    tree: Path,
    ftype: str,
    threads: int,
    python: str = sys.executable,
    program: Path | None = None,
) -> list[Run]:
    """Convert with llama.cpp: a BF16 file, then the quantized one.

    program: llama-quantize; None uses llama-cpp-python
    """
    whole, quantized = folder / "whole.gguf", folder / "peer.gguf"
    script = str(tree / "convert_hf_to_gguf.py")
    first = [python, script, str(model), "--outtype", "bf16", "--outfile", str(whole)]
    quantizer = [str(program)] if program else [python, "-c", QUANTIZE]
    second = [*quantizer, str(whole), str(quantized), ftype, str(threads)]
    runs = [run(first, whole), run(second, quantized)]
    whole.unlink()
    quantized.unlink()
    return runs


def medians(repeats: list[list[Run]]) -> list[Run]:
    """Return the median of each figure of each step."""
    steps = zip(*repeats, strict=True)
    return [
        Run(
            statistics.median(r.wall for r in step),
            statistics.median(r.cpu for r in step),
            max(r.memory for r in step),
            step[0].written,
        )
        for step in steps
    ]


def main() -> None:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-cpp", type=Path, help="a llama.cpp source tree")
    parser.add_argument("--quantize", type=Path, help="the program llama-quantize")
    parser.add_argument("--peer-python", default=sys.executable, help="where its packages are")
    parser.add_argument("--before", help="the interpreter of an earlier dynquant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    table = Table(title=f"{arguments.model.name}, {arguments.threads} threads", box=None)
    table.add_column("")
    for column in ("wall s", "CPU s", "peak MB", "written GB"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory(dir=arguments.model.parent) as scratch:
        folder = Path(scratch)
        for recipe, ftype in (("dynamic-4bit", "Q4_K_M"), ("q8_0", "Q8_0")):
            measured: dict[str, list[list[Run]]] = {"ours": [], "before": [], "peer": []}
            output = folder / "ours.gguf"
            for _ in range(arguments.repeats):
                measured["ours"].append(ours(arguments.model, output, recipe, arguments.threads))
                if arguments.before:
                    measured["before"].append(
                        ours(
                            arguments.model,
                            output,
                            recipe,
                            arguments.threads,
                            python=arguments.before,
                        )
                    )
                if arguments.llama_cpp:
                    measured["peer"].append(
                        llama_cpp_steps(
                            arguments.model,
                            folder,
                            arguments.llama_cpp,
                            ftype,
                            arguments.threads,
                            arguments.peer_python,
                            arguments.quantize,
                        )
                    )
            (own,) = medians(measured["ours"])
            add_row(table, f"dynquant convert --recipe {recipe}", own)
            if measured["before"]:
                (before,) = medians(measured["before"])
                add_row(table, "  the earlier dynquant", before)
                add_ratio(table, "  earlier / ours", before.wall, before.cpu, own)
            if measured["peer"]:
                convert, quantize = medians(measured["peer"])
                add_row(table, "convert_hf_to_gguf.py --outtype bf16", convert)
                add_row(table, f"llama-quantize {ftype}", quantize)
                wall, cpu = convert.wall + quantize.wall, convert.cpu + quantize.cpu
                add_ratio(table, "  both steps / ours", wall, cpu, own)
        Console().print(table)
        for recipe in ("dynamic-4bit", "q8_0"):
            digests = set[str]()
            for threads in (1, 2, 7):
                ours(arguments.model, output, recipe, threads)
                with output.open("rb") as file:
                    digests.add(hashlib.file_digest(file, "sha256").hexdigest())
            verdict = "the same bytes" if len(digests) == 1 else "DIFFERENT BYTES"
            print(f"{recipe}, 1, 2 and 7 threads: {verdict} ({', '.join(sorted(digests))})")


def add_row(table: Table, name: str, figures: Run) -> None:
    """Add a step's figures."""
    memory, written = figures.memory / 1e6, figures.written / 1e9
    table.add_row(
        name, f"{figures.wall:.1f}", f"{figures.cpu:.1f}", f"{memory:.0f}", f"{written:.2f}"
    )


def add_ratio(table: Table, name: str, wall: float, cpu: float, own: Run) -> None:
    """Add the ratio of others' seconds to ours."""
    table.add_row(name, f"{wall / own.wall:.2f}x", f"{cpu / own.cpu:.2f}x", "", "")


if __name__ == "__main__":
    main()
