"""Mixes for one size, compared by llama.cpp: a solution is only kept if nothing usual is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dynquant.budget.goal import fits
from dynquant.budget.solve import Problem, Solved, solve_for
from dynquant.conversion.write import convert_plan
from dynquant.errors import DynquantError
from dynquant.evaluate.evaluation import evaluate
from dynquant.evaluate.results import Evaluation
from dynquant.evaluate.settings import Progress, Settings
from dynquant.plan.plan import Plan
from dynquant.recipe.loader import is_shipped, load_recipe, shipped_recipes
from dynquant.recipe.rules import Recipe
from dynquant.recipe.target import Target


@dataclass(frozen=True)
class Candidate:
    """A mix that has the size.

    name:   what tables call it
    recipe: an ordinary one
    """

    name: str
    recipe: Recipe
    plan: Plan


def candidates(problem: Problem, target: Target, solved: Solved) -> list[Candidate]:
    """Return mixes for a size: the solution, one without factors, and shipped recipes.

    The solution without factors takes the errors of all tensors for equally harmful. Of the shipped
    recipes, the largest mix of llama.cpp and the largest other one that fit are taken; but none if
    the solved recipe is the user's, whose rules they would not keep.
    """
    equal = replace(problem, damage=problem.damage_of(lambda _: 1.0))
    found = [
        Candidate("solved", solved.recipe, solved.plan),
        *_solution("solved-equal", solve_for(equal, target)),
    ]
    if is_shipped(problem.given.recipe):
        for folder in ("llama.cpp", "recipes"):
            found += _largest(problem, target, folder)
    return _different(found)


def _solution(name: str, solved: Solved) -> Iterator[Candidate]:
    yield Candidate(name, solved.recipe, solved.plan)


def _largest(problem: Problem, target: Target, folder: str) -> Iterator[Candidate]:
    """Yield the largest recipe of a folder that fits the model and the size."""
    fitting: list[Candidate] = []
    for name, path in shipped_recipes().items():
        if path.parent.name != folder:
            continue
        recipe = load_recipe(name)
        if recipe.has_choice:
            continue
        try:
            plan = problem.make(recipe)
        except DynquantError:  # a recipe for other models, or one that needs an imatrix
            continue
        if fits(plan, target):
            fitting.append(Candidate(name, recipe, plan))
    if fitting:
        yield max(fitting, key=lambda c: c.plan.tensor_bytes)


def _different(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without those that give the same types as an earlier one."""
    seen: dict[tuple[str, ...], Candidate] = {}
    for candidate in found:
        seen.setdefault(tuple(t.type.name for t in candidate.plan.tensors), candidate)
    return list(seen.values())


def compare(
    found: Sequence[Candidate],
    folder: Path,
    reference: str,
    settings: Settings,
    *,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[Candidate, Evaluation]:
    """Convert candidates and compare them with the model; return the one that loses least.

    folder:    for the files of all of them at once
    reference: as for `evaluate`

    Raises what conversions and evaluations raise.
    """
    files = [folder / f"{c.name}.gguf" for c in found]
    n = settings.n_threads
    for i, (candidate, file) in enumerate(zip(found, files, strict=True)):
        progress("converting the candidates", i, len(files))
        convert_plan(candidate.plan, file, threads=n, verify_sample=0, manifest=None)
    evaluation = evaluate(files, reference, settings, progress=progress, say=say)
    losses = {file.name: file.figures.mean_kld.value for file in evaluation.files}
    best = min(found, key=lambda c: losses[f"{c.name}.gguf"])
    return best, evaluation
