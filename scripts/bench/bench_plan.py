"""DeepSeek-R1's whole plan: tensor bytes, types, seconds and memory, for each recipe and layout.

    python scripts/models/make_sparse_checkpoint.py DeepSeek-R1 FOLDER
    python scripts/bench/bench_plan.py FOLDER [--recipes NAME,NAME] [--small-imatrix] \
        [--markdown FILE]

Each line is `dynquant plan` in a separate process: seconds of the whole command, of them reading
all headers, describing the model, reading the imatrix, and planning; and its largest resident size.
The imatrix is made for the run, as large as R1's (a row for each expert, 1.0 GB), or with
--small-imatrix one row for all. A recipe that asks for none gets none.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import dynquant
from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.load import Mla

RECIPES = ("deepseek-r1-iq1_s", "deepseek-r1-iq1_m", "deepseek-r1-iq2_xxs", "deepseek-r1-q2_k_xl")
WITHOUT_IMATRIX = ("deepseek-r1-q2_k_xl", "deepseek-r1-dq3_k_m")
LAYOUTS: tuple[Mla, ...] = ("merged", "split")

# The steps of the command, each after the clock of the one before; the headers are read once more
# separately, as the page cache then has them for both.
STEPS = """
import json, sys, time
from pathlib import Path
clock = [time.perf_counter()]
import dynquant
from dynquant.arch.load import load_model
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import load_recipe
folder, recipe, mla, imatrix = sys.argv[1:]
clock.append(time.perf_counter())
open_checkpoint(Path(folder))
clock.append(time.perf_counter())
model = load_model(folder, mla=mla, needs_vocab=False)
clock.append(time.perf_counter())
weights = dynquant.load_imatrix(imatrix) if imatrix else None
clock.append(time.perf_counter())
make_plan(model, load_recipe(recipe), imatrix=weights)
clock.append(time.perf_counter())
print(json.dumps(clock))
"""


@dataclass(frozen=True)
class Measured:
    """One plan and what it took. Seconds and bytes."""

    recipe: str
    layout: Mla
    plan: dict[str, Any]
    wall: float
    memory: int
    headers: float
    describing: float
    imatrix: float
    planning: float


def command_of(command: list[str], *, is_quiet: bool = False) -> tuple[str, float, int]:
    """Run a command; return what it printed, its seconds and its largest resident size.

    is_quiet: whether its stderr is dropped
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        actions: list[tuple[int, ...] | tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1)]
        if is_quiet:
            actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - start
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        out.seek(0)
        return out.read().decode(), wall, usage.ru_maxrss * 1024


def measure(folder: Path, recipe: str, layout: Mla, imatrix: Path | None) -> Measured:
    """Plan once as the command does, and once step by step."""
    given = ["--recipe", recipe, "--mla", layout, "--json"]
    given += ["--imatrix", str(imatrix)] if imatrix else []
    cli = [sys.executable, "-m", "dynquant.cli", "plan", str(folder), *given]
    text, wall, memory = command_of(cli)
    steps = [sys.executable, "-c", STEPS, str(folder), recipe, layout, str(imatrix or "")]
    printed = subprocess.run(steps, check=True, capture_output=True, text=True).stdout
    _, headers, loading, reading, planning = (b - a for a, b in pairwise(json.loads(printed)))
    describing = max(0.0, loading - headers)
    return Measured(
        recipe, layout, json.loads(text), wall, memory, headers, describing, reading, planning
    )


def matrices(model: Model) -> Iterator[ModelTensor]:
    """Yield the tensors that a calibration run counts for."""
    ahead = model.prediction.layers if model.prediction else range(0)
    for tensor in model.tensors:
        layer = tensor.parts.layer
        if len(tensor.shape) > 1 and layer is not None and layer not in ahead:
            yield tensor


def write_importance(path: Path, folder: Path, layout: Mla, small: bool) -> None:
    """Write an imatrix in llama.cpp's older format, all of its values one."""
    wanted = list(matrices(dynquant.load_model(folder, mla=layout, needs_vocab=False)))
    with path.open("wb") as file:
        file.write(struct.pack("<i", len(wanted)))
        for tensor in wanted:
            name = tensor.name.encode()
            n = tensor.n_per_row * (1 if small else prod(tensor.shape[:-2]))
            file.write(struct.pack("<i", len(name)) + name + struct.pack("<ii", 1, n))
            file.write(np.ones(n, "<f4").tobytes())
        file.write(struct.pack("<ii", 124, 0))


def types_of(plan: dict[str, Any]) -> str:
    """Return the number of tensors of each type."""
    return ", ".join(f"{name} {count}" for name, count in plan["type_counts"].items())


def table(rows: list[Measured]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield (
        "| recipe | `--mla` | tensor bytes | GiB | bpw | types | `dynquant plan` | headers |"
        " model | imatrix | plan | peak |"
    )
    yield "|---|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|"
    for m in rows:
        n_bytes = m.plan["tensor_bytes"]
        yield (
            f"| {m.recipe} | {m.layout} | {n_bytes:,} | {n_bytes / 2**30:.3f} |"
            f" {m.plan['bits_per_weight']:.4f} | {types_of(m.plan)} | {m.wall:.2f} s |"
            f" {m.headers:.2f} s | {m.describing:.2f} s | {m.imatrix:.2f} s | {m.planning:.2f} s |"
            f" {m.memory / 1e6:.0f} MB |"
        )


def main() -> None:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--small-imatrix", action="store_true", help="one row for all experts")
    parser.add_argument("--markdown", type=Path, help="write the table there as well")
    given = parser.parse_args()
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory(dir=given.folder.parent) as scratch:
        for layout in LAYOUTS:
            imatrix = Path(scratch) / f"{layout}.dat"
            # In a separate process: a child starts with the memory of its parent.
            job = (imatrix, given.folder, layout, given.small_imatrix)
            writer = get_context("spawn").Process(target=write_importance, args=job)
            writer.start()
            writer.join()
            for recipe in given.recipes.split(","):
                given_imatrix = None if recipe in WITHOUT_IMATRIX else imatrix
                rows.append(measure(given.folder, recipe, layout, given_imatrix))
            print(f"{layout}: imatrix of {imatrix.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
            imatrix.unlink()
    lines = "\n".join(table(rows))
    print(lines)
    if given.markdown:
        given.markdown.write_text(lines + "\n", "utf-8")


if __name__ == "__main__":
    main()
