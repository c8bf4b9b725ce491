"""Figures and time of `dynquant eval` beside llama-perplexity --kl-divergence, in one run.

    python scripts/checks/compare_perplexity.py LLAMA_PERPLEXITY REFERENCE.gguf FILE.gguf... \
        --text FILE [--windows 40] [--threads 2]

LLAMA_PERPLEXITY is the program, built from llama.cpp's source. Both get the same tokens in windows
of 512, F32 caches and plain attention, and the same number of threads. Each line is a figure of
one file: ours, llama.cpp's, and the difference. llama-perplexity stores the reference's
log-probabilities in 16 bits, clipped at 16 below the largest; `floor` is the mean KLD that each
gives for the reference against itself.

Seconds are of whole processes: making the reference, then each file. Two things differ between the
programs: the wheel's llama.cpp is of another date and another compiler, and llama-perplexity runs
four windows at once.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dynquant.evaluate.base import open_base
from dynquant.evaluate.complete import complete
from dynquant.evaluate.evaluation import evaluate
from dynquant.evaluate.given import check_given
from dynquant.evaluate.results import Figures
from dynquant.evaluate.settings import Settings

WINDOW = 512
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")

FIGURES: dict[str, Callable[[Figures], float]] = {
    "Mean PPL(Q)": lambda f: f.ppl.value,
    "Mean PPL(base)": lambda f: f.ppl_base.value,
    "Mean PPL(Q)/PPL(base)": lambda f: f.ppl_ratio.value,
    "Mean    KLD": lambda f: f.mean_kld.value,
    "Maximum KLD": lambda f: f.maximum_kld,
    "99.9%   KLD": lambda f: f.kld_999.value,
    "99.0%   KLD": lambda f: f.kld_99.value,
    "Median  KLD": lambda f: f.median_kld.value,
    "RMS Δp": lambda f: 100 * f.rms_dp.value,
    "Same top p": lambda f: 100 * f.same_top.value,
}
"""llama-perplexity's names and our figures, in its units."""


def theirs(
    program: Path, options: list[str], names: dict[str, object]
) -> tuple[dict[str, float], float]:
    """Return the figures that llama-perplexity prints, and its seconds."""
    started = time.perf_counter()
    done = subprocess.run([program, *options], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    output = done.stdout + done.stderr
    if done.returncode:
        sys.exit(f"error: {program}: exit code {done.returncode}\n{output[-2000:]}")
    found: dict[str, float] = {}
    for name in names:
        if match := re.search(
            rf"^(?:.* )?{re.escape(name)}\s*:\s*(-?[\d.]+)", output, re.MULTILINE
        ):
            found[name] = float(match[1])
    return found, seconds


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    table = Table(
        box=None, title=f"{given.reference.name}, {given.windows} windows of {given.text.name}"
    )
    table.add_column("file")
    table.add_column("figure")
    for column in ("dynquant eval", "llama-perplexity", "difference"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base.dat")
        settings = Settings(
            cache=Path(folder),
            texts=(given.text,),
            context=WINDOW,
            tokens=given.windows * WINDOW,
            threads=given.threads,
        )
        common = ["-t", str(given.threads), "-c", str(WINDOW), *EXACT]
        common += ["--kl-divergence-base", str(base)]
        making = ["-m", str(given.reference), "-f", str(given.text)]
        _, their_start = theirs(
            given.program, [*making, "--chunks", str(given.windows), *common], {}
        )
        our_start = _make_reference(given.reference, settings)
        table.add_row("", "seconds: reference", f"{our_start:.1f}", f"{their_start:.1f}", "")
        for file in (given.reference, *given.files):
            figures, ours = _timed(file, given.reference, settings)
            shown, their_time = theirs(
                given.program, ["-m", str(file), "--kl-divergence", *common], FIGURES
            )
            if missing := FIGURES.keys() - shown.keys():
                sys.exit(f"error: llama-perplexity printed no {', '.join(sorted(missing))}")
            for name, of in FIGURES.items():
                value = of(figures)
                table.add_row(
                    file.name,
                    name,
                    f"{value:.6f}",
                    f"{shown[name]:.6f}",
                    f"{value - shown[name]:+.6f}",
                )
            table.add_row(file.name, "seconds", f"{ours:.1f}", f"{their_time:.1f}", "")
    Console(width=130).print(table)


def _make_reference(reference: Path, settings: Settings) -> float:
    """Compute the reference; return the seconds."""
    started = time.perf_counter()
    checked = check_given([reference], str(reference), settings.texts)
    complete(open_base(checked, settings, _ignore, _ignore), settings, _ignore, _ignore)
    return time.perf_counter() - started


def _ignore(*_: object) -> None:
    pass


def _timed(file: Path, reference: Path, settings: Settings) -> tuple[Figures, float]:
    started = time.perf_counter()
    found = evaluate([file], str(reference), settings)
    return found.files[0].figures, time.perf_counter() - started


if __name__ == "__main__":
    main()
