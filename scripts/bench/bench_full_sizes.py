"""Plans of published models at full size with shipped recipes: bits, fallbacks, seconds, memory.

    python scripts/bench/bench_full_sizes.py FOLDER [--models NAME,...] [--recipes NAME,...]

The checkpoints are written to FOLDER as `make_sparse_checkpoint.py` writes them: names, dtypes and
shapes are the published ones, and the weights take no disk space. The configurations are in
tests/support/published_configs.py, which says what is inferred. Importance is one for every weight,
made for the run. Each line is one `dynquant plan` in a separate process. Fallbacks are tensors with
another type than the recipe's, because blocks do not divide their rows, and what they cost.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench_plan import command_of, write_importance

from dynquant.quants.table import ALL

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from published_configs import MIXTURES, MODELS
from sparse import Header, header_of, n_bytes, write_sparse

NEW = ("Qwen3.8-27B", "Gemma-4-31B", "Kimi-K2.5", "DeepSeek-V3.2", "GLM-5")
DENSE_RECIPES = ("dynamic-2bit", "dynamic-3bit", "dynamic-4bit", "dynamic-5bit", "dynamic-6bit")
MIXTURE_RECIPES = ("dynamic-moe-1.58bit", "dynamic-moe-2bit", "dynamic-moe-3bit", "dynamic-4bit")
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Line:
    """One plan and what it took. Seconds and bytes."""

    recipe: str
    plan: dict[str, Any]
    wall: float
    memory: int

    @property
    def fallbacks(self) -> str:
        """Number of fallbacks, and the GiB that they add."""
        found = [t for t in self.plan["tensors"] if t["instead_of"]]
        more = sum(t["bytes"] * (1 - bits(t["instead_of"]) / bits(t["type"])) for t in found)
        return f"{len(found)}, {more / 2**30:.2f} GiB" if found else "none"


def bits(type_name: str) -> float:
    """Return the bits per weight of a type."""
    return ALL[type_name].bpw


def write(folder: Path, name: str) -> Header:
    """Write a checkpoint of holes; return its header."""
    tensors = header_of(MODELS[name])
    total = sum(n_bytes(*tensor) for tensor in tensors.values())
    folder.mkdir(parents=True, exist_ok=True)
    write_sparse(folder, MODELS[name], tensors, -(-total // SHARD_BYTES))
    return tensors


def measure(folder: Path, recipe: str, imatrix: Path) -> Line:
    """Run `dynquant plan` once."""
    given = ["--recipe", recipe, "--imatrix", str(imatrix), "--json"]
    command = [sys.executable, "-m", "dynquant.cli", "plan", str(folder), *given]
    text, wall, memory = command_of(command, is_quiet=True)
    return Line(recipe, json.loads(text), wall, memory)


def row(name: str, line: Line) -> str:
    """Return a line of the table."""
    plan = line.plan
    kinds = ", ".join(f"{kind} {count}" for kind, count in plan["type_counts"].items())
    return (
        f"| {name} | {line.recipe} | {plan['tensor_bytes'] / 2**30:.1f} |"
        f" {plan['bits_per_weight']:.3f} | {line.fallbacks} | {kinds} | {line.wall:.1f} s |"
        f" {line.memory / 1e6:.0f} MB |"
    )


def lines(folder: Path, name: str, recipes: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a model, and its source on stderr."""
    tensors = write(folder, name)
    total = sum(n_bytes(*tensor) for tensor in tensors.values())
    dtypes = sorted({dtype for dtype, shape in tensors.values() if prod(shape) > 1 << 20})
    print(
        f"{name}: {len(tensors):,} stored tensors, {total / 1e9:.0f} GB ({', '.join(dtypes)})",
        file=sys.stderr,
    )
    imatrix = folder / "ones.imatrix.dat"
    # In a separate process: a child starts with the memory of its parent.
    writer = get_context("spawn").Process(
        target=write_importance, args=(imatrix, folder, "split", True)
    )
    writer.start()
    writer.join()
    if writer.exitcode:
        raise SystemExit(f"{name}: the importance was not written")
    for recipe in recipes:
        yield row(name, measure(folder, recipe, imatrix))


def main() -> None:
    """Plan what the command line asks for and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(NEW))
    parser.add_argument("--recipes", help="default: the dynamic ones for the kind of model")
    given = parser.parse_args()
    print("| model | recipe | GiB | bpw | fallbacks | types | `dynquant plan` | peak |")
    print("|---|---|---:|---:|---|---|---:|---:|")
    for name in given.models.split(","):
        usual = MIXTURE_RECIPES if name in MIXTURES else DENSE_RECIPES
        recipes = tuple(given.recipes.split(",")) if given.recipes else usual
        for line in lines(given.folder / name, name, recipes):
            print(line, flush=True)


if __name__ == "__main__":
    main()
