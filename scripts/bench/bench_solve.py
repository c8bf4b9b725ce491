"""DeepSeek-R1 solved for the sizes of published mixes: time, length of the recipe, types by role.

    python scripts/models/make_sparse_checkpoint.py DeepSeek-R1 FOLDER
    python scripts/bench/bench_solve.py FOLDER [--sizes 131GiB,158GiB,183GiB,212GiB]

FOLDER has the shapes of the model and no weights; the errors of types are those of Gaussian rows,
the same for all tensors, and the factors of damage those of trained models. So this shows the
solver and its recipes, not which mix is better. Beside each solution are the published recipe of
nearly its size and what these factors say of both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.arch.base import TensorName
from dynquant.budget.damage import Factors
from dynquant.budget.errors import WEIGHTS, TensorErrors, rows_hash
from dynquant.budget.goal import file_bytes_of
from dynquant.budget.groups import groups_of
from dynquant.budget.knapsack import solve
from dynquant.budget.sensitivity import sensitivity_of
from dynquant.budget.solve import Problem, items_of, pose, solve_for
from dynquant.importance.equal import write_equal
from dynquant.inputs import Inputs
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants import ALL, decode, encode
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.target import Target
from dynquant.recipe.values import size

PUBLISHED = (
    "deepseek-r1-iq1_s",
    "deepseek-r1-iq1_m",
    "deepseek-r1-iq2_xxs",
    "deepseek-r1-q2_k_xl",
)
ROWS, WIDTH = 64, 7168


def gaussian_errors(names: set[str]) -> dict[str, float]:
    """Return the relative squared errors of types on Gaussian rows."""
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    ones = np.ones(WIDTH, np.float32)
    found = {n: decode(encode(x, n, ones), n, WIDTH) for n in names if ALL[n].block_size > 1}
    errors = {n: float(np.square(x - y).sum() / np.square(x).sum()) for n, y in found.items()}
    return {n: errors.get(n, 0.0) for n in names}


def posed(folder: Path, work: Path) -> Problem:
    """Return R1 with open types."""
    model = dynquant.load_model(folder, needs_vocab=False)
    write_equal(model, work / "equal.imatrix.gguf")
    imatrix = dynquant.load_imatrix(work / "equal.imatrix.gguf")
    inputs = Inputs(model, load_recipe("budget"), imatrix)
    plan = make_plan(model, inputs.recipe, imatrix=imatrix, decided={})
    groups = groups_of(plan, None)
    errors = gaussian_errors({t.name for g in groups for t in g.types})
    measured = {
        t.name: TensorErrors(errors, rows_hash(plan, t, WEIGHTS)) for g in groups for t in g.tensors
    }
    known = sensitivity_of(plan, measured, WEIGHTS)
    return pose(inputs, target=Target(), known=known, known_as="Gaussian rows")


def expected(problem: Problem, plan: Plan) -> float:
    """Return the damage of a plan's types, by the errors and factors of a problem."""
    factors = Factors.of_plan(plan)
    return sum(
        factors.of(t.name) * problem.errors[t.name].relative.get(t.type.name, 0.0)
        for t in plan.tensors
        if t.name in problem.errors
    )


def shares(plan: Plan) -> str:
    """Return the mean bits of experts, attention, shared experts and the rest."""
    kinds: dict[str, list[int]] = {}
    for t in plan.tensors:
        role = TensorName.parse(t.name).role
        kind = (
            "experts"
            if role.endswith("_exps")
            else "shared"
            if role.endswith("_shexp")
            else "attention"
            if role.startswith("attn_")
            else "rest"
        )
        bits, weights = kinds.setdefault(kind, [0, 0])
        kinds[kind] = [bits + 8 * t.n_bytes, weights + t.n_weights]
    order = ("experts", "shared", "attention", "rest")
    return " ".join(f"{kinds[k][0] / kinds[k][1]:.2f}" for k in order)


def main() -> None:
    """Solve for the sizes that the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default="131GiB,158GiB,183GiB,212GiB")
    given = parser.parse_args()
    columns = ("recipe", "GiB", "of the size", "expected", "lines", "seconds")
    table = Table(box=None, pad_edge=False)
    for column in (*columns, "bits: experts, shared, attention, rest"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    with tempfile.TemporaryDirectory() as work:
        problem = posed(given.folder, Path(work))
        n = len(problem.plan.tensors)
        table.title = f"{n} tensors, {len(problem.groups)} groups of {problem.plan.architecture}"
        for text, name in zip(given.sizes.split(","), PUBLISHED, strict=True):
            limit = size(text)
            started = time.perf_counter()
            solve(items_of(problem), limit)
            seconds = time.perf_counter() - started
            found = solve_for(problem, Target(size=limit))
            published = load_recipe(name)
            plan = problem.make(published)
            for label, its, recipe in (
                (f"solved for {text}", found.plan, found.recipe),
                (name, plan, published),
            ):
                n_bytes = file_bytes_of(its)
                n_lines = len(recipe.text.splitlines())
                table.add_row(
                    label,
                    f"{n_bytes / 2**30:.2f}",
                    f"{100 * n_bytes / limit:.2f} %",
                    f"{expected(problem, its):.4f}",
                    str(n_lines),
                    f"{seconds:.2f}" if label.startswith("solved") else "",
                    shares(its),
                )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
