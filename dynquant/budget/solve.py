"""The best recipe for a size: the types that rules leave open, chosen by what they cost and buy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import fsum
from typing import Any

from dynquant.budget.comments import Notes, short_text, target_text
from dynquant.budget.damage import Factors, layers_in
from dynquant.budget.errors import TensorErrors, measure_errors
from dynquant.budget.groups import Group, groups_of
from dynquant.budget.knapsack import Option, Solution, solve
from dynquant.budget.memory import Memory, memory_of
from dynquant.budget.sensitivity import Sensitivity, check_fit
from dynquant.budget.written import Open, decided_recipe
from dynquant.conversion.layout import lay_out
from dynquant.errors import PlanError
from dynquant.figures import size_text
from dynquant.inputs import Inputs
from dynquant.keys import KeyValue
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.shards import Split
from dynquant.quants.search import Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.rules import Recipe
from dynquant.recipe.target import CONTEXT, Target

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

    target:   for the roles that share a type
    effort, allow_requantize, set_keys, split: as in `make_plan`
    known:    what was measured before; None measures the errors, and takes the factors of trained
              models. known_as: what messages call it
    progress: called with tensors done and all tensors

    Raises PlanError if the recipe leaves nothing open, and what `make_plan` raises.
    """
    recipe = inputs.recipe
    if not recipe.has_choice:
        raise PlanError(
            f"{recipe.path}: has no rule with `choose`, so that its size is fixed; take the recipe"
            " `budget`, or add rules such as {role: ffn, choose: any}"
        )
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
    plan = make(recipe, decided={})
    groups = groups_of(plan, target.share)
    n = sum(len(g.tensors) for g in groups)
    if known is None:
        errors = measure_errors(
            plan, groups, threads=threads, progress=progress and (lambda done: progress(done, n))
        )
    else:
        check_fit(known, plan, groups, known_as)
        errors = known.errors()
    measured = known.factors() if known else {}
    factors = Factors(layers_in(t.name for t in plan.tensors), measured)
    damage = tuple(_damage(group, errors, factors.of) for group in groups)
    uses_imatrix = inputs.imatrix is not None and recipe.importance != "ignored"
    given = Open(inputs.model, recipe, uses_imatrix, inputs.grids)
    return Problem(given, make, plan, groups, errors, damage)


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
    goal = _goal(problem.plan, target)
    open_bytes = sum(
        Group((t,), ()).n_bytes(t.type) for t in problem.plan.tensors if t.name in problem.open
    )
    fixed = goal.counted(problem.plan) - open_bytes
    room = goal.limit - fixed
    for _ in range(ROUNDS):
        solution = solve(items_of(problem), room)
        if solution is None:
            raise PlanError(_unreachable(problem, target, goal, fixed))
        found = _solved(problem, target, goal, solution)
        if goal.counted(found.plan) <= goal.limit:
            return found
        room -= goal.counted(found.plan) - goal.limit
    raise PlanError(
        f"{problem.given.recipe.path}: no file of {target_text(target)} was found in {ROUNDS}"
        " tries, because headers and shards change with the types; ask for another size, or without"
        " shards"
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


@dataclass(frozen=True)
class _Goal:
    """Bytes that a plan may have, and how they are counted.

    memory: what is needed besides the weights, for `fit`
    """

    limit: int
    counted: Callable[[Plan], int]
    memory: Memory | None = None


def _goal(plan: Plan, target: Target) -> _Goal:
    """Return the limit of a target; raise PlanError if memory has no room for any weights."""
    if target.size is not None:
        return _Goal(target.size, file_bytes_of)
    if target.bpw is not None:
        return _Goal(int(target.bpw * plan.n_weights / 8), lambda plan: plan.tensor_bytes)
    assert target.fit is not None, "a target is one of three"
    memory = memory_of(plan, target.context or CONTEXT)
    if memory.total >= target.fit:
        raise PlanError(
            f"{size_text(target.fit)} have no room for weights: a context of"
            f" {memory.context:,} tokens takes {size_text(memory.total)}; ask for a shorter one"
            " (--context)"
        )
    return _Goal(target.fit - memory.total, file_bytes_of, memory)


def fits(plan: Plan, target: Target) -> bool:
    """Whether a plan is within a target."""
    goal = _goal(plan, target)
    return goal.counted(plan) <= goal.limit


def file_bytes_of(plan: Plan) -> int:
    """Return the bytes of all files of a plan, with headers and padding."""
    return lay_out(plan).n_bytes


def items_of(problem: Problem) -> list[list[Option]]:
    """Return the options of each group: bytes with padding, and expected damage."""
    return [
        [Option(group.n_bytes(t), damage[t.name]) for t in group.types]
        for group, damage in zip(problem.groups, problem.damage, strict=True)
    ]


def _solved(problem: Problem, target: Target, goal: _Goal, solution: Solution) -> Solved:
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


def _unreachable(problem: Problem, target: Target, goal: _Goal, fixed: int) -> str:
    """Return why no file is small enough, and the rules that take the most."""
    least = fixed + sum(min(map(g.n_bytes, g.types)) for g in problem.groups)
    takes: dict[str, int] = {}
    for group in problem.groups:
        small = min(group.types, key=group.n_bytes)
        for t in group.tensors:
            one = Group((t,), ()).n_bytes(small)
            rows = f", rows of {t.n_per_row}" if t.n_per_row % 256 else ""
            rules = ", ".join(dict.fromkeys(one.rule for one in group.tensors))
            text = f"{rules} (at least {small.name}{rows})"
            takes[text] = takes.get(text, 0) + one
    for t in problem.plan.tensors:
        if t.name not in problem.open:
            text = f"{t.rule} ({t.type.name})"
            takes[text] = takes.get(text, 0) + t.n_bytes
    largest = sorted(takes.items(), key=lambda pair: -pair[1])[:3]
    parts = "; ".join(f"{text}: {size_text(n)}" for text, n in largest)
    smallest = f"{size_text(least)}, {size_text(least - goal.limit)} more"
    if target.bpw is not None:
        smallest = f"{8 * least / problem.plan.n_weights:.3f} bits per weight"
    return (
        f"{problem.given.recipe.path}: no file of {target_text(target)} is possible: the smallest"
        f" that the rules allow has {smallest}; the most is taken by {parts}; allow types of fewer"
        " bits there, or ask for more"
    )
