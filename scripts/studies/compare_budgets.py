"""What a model loses by solved recipes, beside other mixes of exactly their sizes.

    pip install -e '.[dev]'
    python scripts/studies/compare_budgets.py MODEL.gguf --imatrix FILE --text FILE \
        --llama-quantize PROGRAM [--moments FILE] [--sensitivity FILE] [--bits 1.8,2.2,2.7,3.3,4.5]

MODEL.gguf has float weights; PROGRAM is llama-quantize, built from llama.cpp's source. For each
number of bits, the nearest file of each kind is taken:

    llama    llama-quantize's mixes, with the same imatrix
    hand     the shipped dynamic recipes, with the moments if they are given
    uniform  one type for all matrices, with the moments if they are given

and the recipe that `dynquant solve` finds for its bytes, or fewer, with the moments and the factors
of the sensitivity file if they are given. All are compared with the model over the text's first
windows of 512 tokens, the second half of each. Columns:

    MB, KLD    of the file, and of the solved one
    solved     KLD of the solved file less that of the other, in percent of it, with its standard
               error over windows
    expected   of the solver, which is about right only with a sensitivity file
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compare_recipes import MIXES
from losses import Losses
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.budget.sensitivity import read_sensitivity
from dynquant.budget.solve import pose, solve_for
from dynquant.checkpoint.gguf import read_gguf
from dynquant.conversion.layout import lay_out
from dynquant.conversion.write import convert_plan
from dynquant.inputs import Inputs
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.recipe.loader import load_recipe, parse_recipe, shipped_recipes
from dynquant.recipe.target import Target

F64 = NDArray[np.float64]
UNIFORM = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q4_K", "Q5_K")


@dataclass(frozen=True)
class Other:
    """A file to beat: its plan, or its path if llama-quantize made it."""

    kind: str
    name: str
    n_bytes: int
    bits: float
    made: Plan | Path


class Study:
    """The model with what is known of its inputs, and the other files."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._given, self._folder = given, folder
        moments = dynquant.load_moments(given.moments) if given.moments else None
        self._inputs = Inputs(
            dynquant.load_model(given.model),
            load_recipe("budget"),
            dynquant.load_imatrix(given.imatrix),
            moments,
        )
        known = read_sensitivity(given.sensitivity) if given.sensitivity else None
        self._problem = pose(
            self._inputs, target=Target(), threads=2, known=known, known_as=str(given.sensitivity)
        )
        self._losses = Losses(
            given.model, given.text, given.windows, given.threads, folder / "cache"
        )
        self.others = [*self._mixes(), *self._recipes()]
        with_moments = "with" if moments else "without"
        its = f"factors of {given.sensitivity.name}" if known else "factors of trained models"
        self.title = (
            f"{given.model.name}: {self._losses.n_windows} windows of {given.text.name};"
            f" {with_moments} error feedback; {its}"
        )

    def _mixes(self) -> Iterator[Other]:
        wanted = max(map(float, self._given.bits.split(","))) + 1
        for mix in MIXES:
            out = self._folder / f"llama-{mix}.gguf"
            its = self._given
            command = [its.llama_quantize, "--imatrix", its.imatrix, its.model, out, mix]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{mix}: left out: {done.stderr.splitlines()[-1:]}", file=sys.stderr)
                continue
            tensors = read_gguf(out).tensors
            n_weights = sum(int(np.prod(t.shape)) for t in tensors)
            bits = 8 * sum(t.n_bytes for t in tensors) / n_weights
            if bits > wanted:
                out.unlink()
                continue
            yield Other("llama", mix, out.stat().st_size, bits, out)

    def _recipes(self) -> Iterator[Other]:
        for name in shipped_recipes():
            if name.startswith("dynamic-"):
                yield from self._planned("hand", name, None)
        for name in UNIFORM:
            yield from self._planned("uniform", name, f"default: {name}\nfallback: [IQ4_NL, F16]")

    def _planned(self, kind: str, name: str, text: str | None) -> Iterator[Other]:
        recipe = parse_recipe(text, name, name) if text else load_recipe(name)
        try:
            its = self._inputs
            plan = make_plan(its.model, recipe, imatrix=its.imatrix, moments=its.moments)
        except dynquant.DynquantError as e:
            print(f"{name}: left out: {e.messages[0]}", file=sys.stderr)
            return
        yield Other(kind, name, lay_out(plan).n_bytes, plan.bits_per_weight, plan)

    def nearest(self, bits: float) -> Iterator[Other]:
        """Yield the file of each kind that is nearest to a number of bits."""
        for kind in ("llama", "hand", "uniform"):
            if some := [o for o in self.others if o.kind == kind]:
                yield min(some, key=lambda o: abs(o.bits - bits))

    def row(self, other: Other) -> tuple[str, ...]:
        """Compare a file with the solved one of its size."""
        theirs = self._loss(other.made)
        solved = solve_for(self._problem, Target(size=other.n_bytes))
        ours = self._loss(solved.plan)
        per_window = (ours - theirs).mean(axis=1) / theirs.mean()
        error = per_window.std(ddof=1) / len(per_window) ** 0.5
        return (
            other.kind,
            other.name,
            f"{other.bits:.2f}",
            f"{other.n_bytes / 1e6:.3f}",
            f"{theirs.mean():.4e}",
            f"{solved.file_bytes / 1e6:.3f}",
            f"{ours.mean():.4e}",
            f"{100 * per_window.mean():+.1f} ± {100 * error:.1f} %",
            f"{solved.solution.damage:.3e}",
        )

    def _loss(self, made: Plan | Path) -> F64:
        if isinstance(made, Path):
            return self._losses.of(made)[1]
        file = self._folder / "file.gguf"
        convert_plan(made, file, force=True, verify_sample=0)
        return self._losses.of(file)[1]


def main() -> None:
    """Compare what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--moments", type=Path)
    parser.add_argument("--sensitivity", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="unseen by all that was measured")
    parser.add_argument("--llama-quantize", type=Path, required=True)
    parser.add_argument("--bits", default="1.8,2.2,2.7,3.3,4.5")
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    given = parser.parse_args()
    table = Table(box=None, pad_edge=False)
    columns = ("beside", "name", "bits", "MB", "KLD", "solved MB", "KLD", "solved", "expected")
    for column in columns:
        table.add_column(column, justify="left" if column in ("beside", "name") else "right")
    with tempfile.TemporaryDirectory() as folder:
        study = Study(given, Path(folder))
        table.title = study.title
        seen: set[str] = set()
        for bits in map(float, given.bits.split(",")):
            for other in study.nearest(bits):
                if other.name in seen:
                    continue
                seen.add(other.name)
                row = study.row(other)
                table.add_row(*row)
                print(*row, file=sys.stderr, flush=True)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
