"""What a model loses with one importance or another: none, llama-imatrix's, ours, ours with means.

    pip install -e '.[dev]'
    python scripts/studies/compare_importance.py MODEL --given NAME=FILE ... --text FILE \
        [--types IQ2_XXS,Q2_K] [--replicas 3] [--windows 16]

MODEL is a checkpoint or a GGUF with float weights. For each type, files are made in which all
matrices of the layers (or --tensors) have the type and the rest F16: without importance, and with
each given imatrix. Means of inputs are used where the file has them; NAME=FILE,plain leaves them
out. The files are compared with the model over the text's first windows of 512 tokens, the second
half of each, as by `dynquant eval`. Columns:

    KL        mean KL divergence of the next token from the model's, in nats
    KL 99%    what one position in a hundred exceeds
    vs first  KL less that of the first given imatrix, in percent of it, with its standard error

Replicas and standard errors are as in compare_objectives.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from losses import WINDOW, Losses
from numpy.typing import NDArray
from replicas import draw_axes, replica, replica_imatrix
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.arch.base import Model
from dynquant.arrays import F32
from dynquant.conversion.write import convert_plan
from dynquant.importance.imatrix import Imatrix, write_imatrix
from dynquant.plan.make import make_plan
from dynquant.quants import ALL
from dynquant.recipe.loader import parse_recipe

F64 = NDArray[np.float64]
NONE = "none"


@dataclass(frozen=True)
class Result:
    """What the files of one type and one importance lose; kl is float64 [n_replicas, n_windows]."""

    type: str
    importance: str
    kl_mean: float
    kl_99: float
    kl: F64

    def excess(self, first: Result) -> tuple[float, float]:
        """Return KL less another one's and its standard error, both as shares of the other's."""
        d = self.kl - first.kl
        variance = sum(
            np.var(d.mean(axis=axis), ddof=1) / d.shape[1 - axis]
            for axis in (0, 1)
            if d.shape[1 - axis] > 1
        )
        return float(d.mean()) / first.kl_mean, float(np.sqrt(variance)) / first.kl_mean


def without_means(imatrix: Imatrix, path: Path) -> Imatrix:
    """Write and read an imatrix without the sums that have signs."""
    entries: dict[str, tuple[F32, list[int]]] = {
        name: (e.sums(0, e.n_values).reshape(e.n_rows, -1), list(e.counts))
        for name, e in imatrix.entries.items()
    }
    write_imatrix(path, entries, datasets=imatrix.datasets, chunk_count=0, chunk_size=WINDOW)
    return dynquant.load_imatrix(path)


class Comparison:
    """The replicas, each with its imatrix files, and the reference."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._folder, self._glob = folder, given.tensors
        model = dynquant.load_model(given.model)
        files = {name: self._opened(name, value) for name, value in given.given}
        self._replicas: list[tuple[Model, dict[str, Imatrix | None]]] = []
        for i in range(given.replicas):
            axes = draw_axes(model, i) if i else None
            known: dict[str, Imatrix | None] = {NONE: None}
            for name, imatrix in files.items():
                path = folder / f"replica-{i}-{name}.gguf"
                known[name] = replica_imatrix(imatrix, model, axes, path) if axes else imatrix
            self._replicas.append((replica(model, axes), known))
        plain = folder / "plain.gguf"
        self.write(self._replicas[0][0], None, "F32", plain)
        self._losses = Losses(plain, given.text, given.windows, given.threads, folder / "cache")
        plain.unlink()
        self.names = [NONE, *files]
        self.description = (
            f"{given.model.name}: {len(self._replicas)} replicas x {self._losses.n_windows} windows"
            f" of {WINDOW} tokens of {given.text.name}; perplexity {self._losses.perplexity:.4f}"
        )

    def _opened(self, name: str, value: str) -> Imatrix:
        path, _, word = value.partition(",")
        imatrix = dynquant.load_imatrix(path)
        return without_means(imatrix, self._folder / f"{name}.gguf") if word == "plain" else imatrix

    def write(self, model: Model, imatrix: Imatrix | None, type_name: str, out: Path) -> None:
        """Write a file whose matrices have one type."""
        rest = "F32" if type_name == "F32" else "F16"
        text = f'default: {rest}\nrules: [{{name: "{self._glob}", type: {type_name}}}]'
        recipe = parse_recipe(f"{text}\nfallback: [F16]", "compare_importance", type_name)
        convert_plan(make_plan(model, recipe, imatrix=imatrix), out, force=True)

    def result(self, type_name: str, name: str) -> Result:
        """Make, read and compare the files of one type and one importance."""
        file = self._folder / "quantized.gguf"
        measured: list[F64] = []
        for model, files in self._replicas:
            self.write(model, files[name], type_name, file)
            measured.append(self._losses.of(file)[1])
        kl = np.stack(measured)
        mean, most = float(kl.mean()), float(np.quantile(kl, 0.99))
        return Result(type_name, name, mean, most, kl.mean(axis=-1))


def lines_of(results: list[Result]) -> list[tuple[str, ...]]:
    """Return the lines of a type's table."""
    first = next((r for r in results if r.importance != NONE), results[0])
    lines: list[tuple[str, ...]] = []
    for r in results:
        share, error = r.excess(first)
        versus = "first" if r is first else f"{100 * share:+.1f} ± {100 * error:.1f} %"
        lines.append((r.type, r.importance, f"{r.kl_mean:.4e}", f"{r.kl_99:.3e}", versus))
    return lines


def table_of(lines: list[tuple[str, ...]], title: str) -> Table:
    """Lay the results out."""
    table = Table(title=title, box=None, pad_edge=False)
    for column in ("type", "importance", "KL", "KL 99%", "vs first"):
        table.add_column(column, justify="left" if column[0] in "ti" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def pair(text: str) -> tuple[str, str]:
    """Split NAME=FILE."""
    name, _, path = text.partition("=")
    return name, path


def main() -> None:
    """Compare what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--given", type=pair, action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--text", type=Path, required=True, help="unseen by model and imatrix")
    parser.add_argument("--types", default="IQ1_S,IQ2_XXS,Q2_K,IQ3_XXS,Q4_K")
    parser.add_argument("--tensors", default="blk.*", help="glob of those of the type")
    parser.add_argument("--windows", type=int, default=16, help=f"of {WINDOW} tokens")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--without-none", action="store_true", help="only the given ones")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    found: list[list[Result]] = []
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(given, Path(folder))
        for type_name in given.types.upper().split(","):
            results: list[Result] = []
            for name in comparison.names:
                if name == NONE and (given.without_none or ALL[type_name].needs_importance):
                    continue
                results.append(comparison.result(type_name, name))
                print(type_name, name, f"{results[-1].kl_mean:.4e}", file=sys.stderr, flush=True)
            found.append(results)
    lines = [line for results in found for line in lines_of(results)]
    Console(width=None if sys.stdout.isatty() else 120).print(
        table_of(lines, comparison.description)
    )
    if given.json:
        rows = [r.__dict__ | {"kl": r.kl.tolist()} for results in found for r in results]
        given.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
