"""The best recipe for a size: the types that rules leave open, chosen by what they cost and buy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import fsum
from typing import Any

from dynquant.budget.comments import Notes, short_text, target_text
from dynquant.budget.damage import Factors
from dynquant.budget.errors import TensorErrors, measure_errors
from dynquant.budget.goal import Goal, check_possible, file_bytes_of, fixed_bytes, goal_of
from dynquant.budget.groups import Group, groups_of
from dynquant.budget.knapsack import Option, Solution, solve
from dynquant.budget.memory import Memory
from dynquant.budget.sensitivity import Sensitivity, check_fit
from dynquant.budget.written import Open, decided_recipe
from dynquant.errors import PlanError
from dynquant.inputs import Inputs
from dynquant.keys import KeyValue
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.shards import Split
from dynquant.quants.search import Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.rules import Recipe
from dynquant.recipe.target import Target

ROUNDS = 8
"""Times that the size is corrected by what the headers take."""


@dataclass(frozen=True)
class Solved:
    """A recipe for a size, and what its types cost and buy.

    recipe:   an ordinary recipe; `recipe.text` is its file
    plan:     of the recipe
    target:   what was asked for
    groups:   tensors that share a type, each with the type it has in `chosen`
    damage:   expected damage of each group's types, in nats, about
    solution: of the knapsack
    memory:   what is needed besides the weights, if the target is memory
    """

    recipe: Recipe
    plan: Plan
    target: Target
    groups: tuple[Group, ...]
    chosen: tuple[QuantType, ...]
    damage: tuple[Mapping[str, float], ...]
    solution: Solution
    file_bytes: int
    memory: Memory | None = None


@dataclass(frozen=True)
class Problem:
    """Everything that does not depend on the size.

    given:   the recipe and the model
    make:    makes the plan of a recipe, with the user's options
    plan:    with the types of the most bits where they are open
    groups:  tensors that share a type
    errors:  of each tensor
    damage:  of each group's types, by name
    """

    given: Open
    make: Callable[..., Plan]
    plan: Plan
    groups: tuple[Group, ...]
    errors: Mapping[str, TensorErrors]
    damage: tuple[Mapping[str, float], ...]

    @property
    def open(self) -> frozenset[str]:
        """Names of the tensors whose types are open."""
        return frozenset(n for group in self.groups for n in group.names)

    def damage_of(self, factor: Callable[[str], float]) -> tuple[Mapping[str, float], ...]:
        """Return the damage of each group's types; factor: of a tensor's errors, by its name."""
        return tuple(_damage(group, self.errors, factor) for group in self.groups)


def solve_recipe(
    inputs: Inputs,
    asked: Target,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Solved:
    """Return the recipe of the least expected damage for a size.

    asked:   the size; the recipe's target where it says nothing
    options: of `pose`

    Raises PlanError if no size is asked for, if the recipe leaves nothing open, or if its rules
    allow no file of that size, and what `make_plan` raises.
    """
    target = asked_of(inputs, asked)
    problem = pose(inputs, target=target, threads=threads, progress=progress, **options)
    return solve_for(problem, target)


def pose(
    inputs: Inputs,
    *,
    target: Target,
    effort: Effort | None = None,
    allow_requantize: bool = False,
    set_keys: Mapping[str, KeyValue | str] | None = None,
    split: Split | None = None,
    threads: int = 1,
    known: Sensitivity | None = None,
    known_as: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Problem:
    """Measure what each open type would do to each tensor.

    target:   the size, and the roles that share a type; one without a size for all sizes
    effort, allow_requantize, set_keys, split: as in `make_plan`
    known:    what was measured before; None measures the errors, and takes the factors of trained
              models. known_as: what messages call it
    progress: called with tensors done and all tensors

    Raises PlanError, before anything is measured, if the recipe leaves nothing open or its rules
    allow no file of the size, and what `make_plan` raises.
    """
    recipe = inputs.recipe
    make = partial(
        make_plan,
        inputs.model,
        imatrix=inputs.imatrix,
        moments=inputs.moments,
        effort=effort,
        allow_requantize=allow_requantize,
        set_keys=set_keys,
        split=split,
        grids=inputs.grids,
    )
    plan, groups = opened(recipe, target, make)
    n = sum(len(g.tensors) for g in groups)
    if known is None:
        errors = measure_errors(
            plan, groups, threads=threads, progress=progress and (lambda done: progress(done, n))
        )
    else:
        check_fit(known, plan, groups, known_as)
        errors = known.errors()
    measured = known.factors() if known else {}
    factors = Factors.of_plan(plan, measured)
    damage = tuple(_damage(group, errors, factors.of) for group in groups)
    uses_imatrix = inputs.imatrix is not None and recipe.importance != "ignored"
    given = Open(inputs.model, recipe, uses_imatrix, inputs.grids)
    return Problem(given, make, plan, groups, errors, damage)


def opened(
    recipe: Recipe, target: Target, make: Callable[..., Plan]
) -> tuple[Plan, tuple[Group, ...]]:
    """Return the plan with the types of the most bits, and the groups whose types are open.

    make: makes the plan of a recipe

    Raises PlanError if the recipe leaves nothing open or its rules allow no file of the size, and
    what `make_plan` raises.
    """
    if not recipe.has_choice:
        raise PlanError(
            f"{recipe.path}: has no rule with `choose`, so that its size is fixed; take the recipe"
            " `budget`, or add rules such as {role: ffn, choose: any}"
        )
    plan = make(recipe, decided={})
    groups = groups_of(plan, target.share)
    if target.is_given:
        check_possible(plan, groups, target)
    return plan, groups


def _damage(
    group: Group, errors: Mapping[str, TensorErrors], factor: Callable[[str], float]
) -> Mapping[str, float]:
    return {
        t.name: fsum(factor(n) * errors[n].relative[t.name] for n in group.names)
        for t in group.types
    }


def solve_for(problem: Problem, target: Target) -> Solved:
    """Return the recipe of the least damage for a size.

    Raises PlanError if the rules allow no file of that size.
    """
    check_possible(problem.plan, problem.groups, target)
    goal = goal_of(problem.plan, target)
    room = goal.limit - fixed_bytes(goal, problem.plan, problem.groups)
    for _ in range(ROUNDS):
        solution = solve(items_of(problem), room)
        if solution is None:
            break
        found = _solved(problem, target, goal, solution)
        if goal.counted(found.plan) <= goal.limit:
            return found
        room -= goal.counted(found.plan) - goal.limit
    raise PlanError(
        f"{problem.given.recipe.path}: no file of {target_text(target)} was found, because headers"
        " and shards change with the types; ask for another size, or without shards"
    )


def asked_of(inputs: Inputs, asked: Target) -> Target:
    """Return the target that is asked for, else the recipe's; raise PlanError without any."""
    target = asked.over(inputs.recipe.target)
    if not target.is_given:
        raise PlanError(
            f"{inputs.recipe.path}: no size is asked for; give --target-size, --target-bpw or"
            " --fit, or add `target:` to the recipe"
        )
    return target


def items_of(problem: Problem) -> list[list[Option]]:
    """Return the options of each group: bytes with padding, and expected damage."""
    return [
        [Option(group.n_bytes(t), damage[t.name]) for t in group.types]
        for group, damage in zip(problem.groups, problem.damage, strict=True)
    ]


def _solved(problem: Problem, target: Target, goal: Goal, solution: Solution) -> Solved:
    chosen = tuple(g.types[k] for g, k in zip(problem.groups, solution.chosen, strict=True))
    types = {n: t for g, t in zip(problem.groups, chosen, strict=True) for n in g.names}
    recipe = _recipe(problem, target, types, solution)
    plan = problem.make(recipe)
    return Solved(
        recipe,
        plan,
        target,
        problem.groups,
        chosen,
        problem.damage,
        solution,
        file_bytes_of(plan),
        goal.memory,
    )


def _recipe(
    problem: Problem, target: Target, types: Mapping[str, QuantType], solution: Solution
) -> Recipe:
    name = f"{problem.given.recipe.name}-{short_text(target)}"
    notes = Notes(
        problem.plan.architecture, problem.given.recipe, problem.groups, problem.damage, types
    )
    return decided_recipe(
        problem.given,
        types,
        name=name,
        description=f"{problem.given.recipe.name}, solved for {target_text(target)}",
        head=notes.head(target, solution),
        comment=notes.of,
    )
