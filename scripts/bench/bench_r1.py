"""DeepSeek-R1 at full width: time and memory of some layers, and what the whole model takes.

    python scripts/models/make_synthetic_r1.py FOLDER
    python scripts/bench/bench_r1.py FOLDER [--threads 1,2,16] [--before PYTHON]

Converts FOLDER with the types of recipes/deepseek-r1-iq1_s.yaml, all routed experts in IQ1_S (the
six layers that have more bits are not among so few), and reckons from it, weight by weight, what
the whole model takes; routed experts are 97.4% of that and less of this. The first number of
threads counts. Beside it ggml's IQ1_S alone in the same run, from weights in memory: no reading,
no decoding, no intermediate file. --before is the interpreter of an environment with an earlier
dynquant, which converts in turn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_convert import Run, ours

import dynquant
from dynquant.quants import ALL

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from oracles import ggml_encode

R1_WEIGHTS = 671_026_419_200
"""Of the published shapes, without the layer that predicts ahead."""

RECIPE = """\
extends: deepseek-r1-iq1_s
rules:
  - {role: experts, type: IQ1_S}
"""
"""The few layers here would all be among the first six."""

SAMPLE = (512, 7168)


def ggml_rate() -> float:
    """Return the weights a second that ggml's IQ1_S encodes on one thread."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SAMPLE, dtype=np.float32)
    w = np.exp(rng.standard_normal(SAMPLE[1], dtype=np.float32))
    ggml_encode(x[:1], ALL["IQ1_S"], w)  # builds its tables
    start = time.perf_counter()
    ggml_encode(x, ALL["IQ1_S"], w)
    return x.size / (time.perf_counter() - start)


def numbers(text: str) -> list[int]:
    """Return the numbers of a list such as 1,2,16."""
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=numbers, default=[2], help="such as 1,2,16")
    parser.add_argument("--before", help="the interpreter of an earlier dynquant")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder.parent) as scratch:
        recipe, output = Path(scratch) / "r1.yaml", Path(scratch) / "r1.gguf"
        recipe.write_text(RECIPE, "utf-8")
        imatrix = given.folder / "imatrix.gguf"
        plan = dynquant.make_plan(
            dynquant.load_model(given.folder),
            dynquant.load_recipe(recipe),
            imatrix=dynquant.load_imatrix(imatrix),
        )
        more = ["--imatrix", str(imatrix)]
        pythons = {"ours": sys.executable} | ({"earlier": given.before} if given.before else {})
        runs: dict[tuple[str, int], Run] = {}
        for threads in given.threads:
            for name, python in pythons.items():
                (runs[name, threads],) = ours(
                    given.folder, output, str(recipe), threads, more, python
                )
    read = sum(p.stat().st_size for p in given.folder.glob("*.safetensors"))
    counts = ", ".join(f"{name} {n}" for name, n in plan.type_counts.items())
    print(f"{plan.n_weights:,} weights ({counts}), {plan.bits_per_weight:.3f} bits per weight")
    first = runs["ours", given.threads[0]]
    print(f"{read / 1e9:.1f} GB read, {first.written / 1e9:.2f} GB written")
    for (name, threads), run in runs.items():
        print(
            f"{name}, {threads} threads: wall {run.wall:.1f} s, CPU {run.cpu:.1f} s, peak"
            f" {run.memory / 1e6:.0f} MB"
        )
    whole = first.cpu * R1_WEIGHTS / plan.n_weights / 3600
    rate = ggml_rate()
    print(
        f"the whole of R1 at this rate: {whole:.1f} core-hours, all that there is to do; ggml's"
        f" IQ1_S alone, at {rate / 1e6:.1f} Mw/s: {R1_WEIGHTS / rate / 3600:.1f} core-hours"
    )


if __name__ == "__main__":
    main()
