"""What a model loses by recipes, in llama.cpp: bits per weight, perplexity, divergence from F32.

    pip install -e '.[dev]' llama-cpp-python
    python scripts/studies/compare_recipes.py MODEL --text FILE [--imatrix FILE] \
        [--windows 40] RECIPE...

Each recipe's file is compared with the F32 file over the text's first windows of 512 tokens, every
position of each. Columns:

    bpw, MB  of the tensors
    PPL      perplexity
    KL       mean Kullback-Leibler divergence of the next token from the F32 file's, in nats, and
             its standard error over the windows
    KL 99%   what one position in a hundred exceeds
    line     KL over what the recipes named in --line give at that size, between two of them along
             a straight line of its logarithm: how recipes of other sizes are compared

What one file loses is partly luck: differences of a few percent are noise (compare_objectives.py
resolves smaller ones, by replicas). An imatrix that a recipe needs and is not given passes it over.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from runtime import Reference, windows_of

import dynquant


@dataclass(frozen=True)
class Loss:
    """What one recipe's file is and loses."""

    recipe: str
    bits: float
    n_bytes: int
    perplexity: float
    divergence: float
    error: float
    worst: float


def measure(
    recipe: str, model: Path, imatrix: Path | None, reference: Reference, out: Path, threads: int
) -> Loss:
    """Convert by a recipe and compare the file with the F32 one."""
    plan = dynquant.convert(model, out, recipe=recipe, imatrix=imatrix, threads=threads, force=True)
    loss, kl = reference.compare(out, threads)
    per_window = kl.mean(axis=1)
    return Loss(
        plan.recipe.name,
        plan.bits_per_weight,
        plan.tensor_bytes,
        float(np.exp(loss.mean())),
        float(kl.mean()),
        float(per_window.std(ddof=1) / np.sqrt(len(per_window))),
        float(np.quantile(kl, 0.99)),
    )


def on_line(losses: list[Loss], bits: float) -> float:
    """Return the KL that recipes give at a size; nan outside their sizes."""
    points = sorted((one.bits, np.log(one.divergence)) for one in losses)
    x, y = [b for b, _ in points], [d for _, d in points]
    return float(np.exp(np.interp(bits, x, y, left=np.nan, right=np.nan)))


def main() -> None:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--line", default="", help="recipes to compare sizes along, by commas")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    line = [name for name in given.line.split(",") if name]
    losses: dict[str, Loss] = {}
    with tempfile.TemporaryDirectory() as scratch:
        whole, out = Path(scratch) / "f32.gguf", Path(scratch) / "out.gguf"
        dynquant.convert(given.model, whole, recipe="f32", threads=given.threads)
        windows = windows_of(whole, given.text, given.windows)
        reference = Reference.of(whole, windows, given.threads)
        for recipe in dict.fromkeys([*line, *given.recipes]):
            job = (recipe, given.model, given.imatrix, reference, out, given.threads)
            try:
                losses[recipe] = measure(*job)
            except dynquant.DynquantError as e:
                print(f"{recipe}: passed over: {e.messages[0]}")
    table = Table(title=f"{given.model.name}, {given.windows} windows of 512 tokens", box=None)
    table.add_column("recipe")
    for column in ("bpw", "MB", "PPL", "KL", "±", "KL 99%", "line"):
        table.add_column(column, justify="right")
    along = [losses[name] for name in line if name in losses]
    for one in sorted(losses.values(), key=lambda one: one.bits):
        ratio = one.divergence / on_line(along, one.bits) if along else np.nan
        table.add_row(
            one.recipe,
            f"{one.bits:.3f}",
            f"{one.n_bytes / 1e6:.3f}",
            f"{one.perplexity:.3f}",
            f"{one.divergence:.5f}",
            f"{one.error:.5f}",
            f"{one.worst:.4f}",
            "" if np.isnan(ratio) else f"{ratio:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
