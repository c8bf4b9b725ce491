"""How many bytes a plan may have, and what stands in the way of a size that no plan has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dynquant.budget.comments import target_text
from dynquant.budget.groups import Group
from dynquant.budget.memory import Memory, memory_of
from dynquant.conversion.layout import lay_out
from dynquant.errors import PlanError
from dynquant.figures import size_text
from dynquant.plan.plan import Plan
from dynquant.recipe.target import CONTEXT, Target


@dataclass(frozen=True)
class Goal:
    """Bytes that a plan may have, and how they are counted.

    memory: what is needed besides the weights, for `fit`
    """

    limit: int
    counted: Callable[[Plan], int]
    memory: Memory | None = None


def goal_of(plan: Plan, target: Target) -> Goal:
    """Return the limit of a target; raise PlanError if memory has no room for any weights."""
    if target.size is not None:
        return Goal(target.size, file_bytes_of)
    if target.bpw is not None:
        return Goal(int(target.bpw * plan.n_weights / 8), lambda plan: plan.tensor_bytes)
    assert target.fit is not None, "a target is one of three"
    memory = memory_of(plan, target.context or CONTEXT)
    if memory.total >= target.fit:
        raise PlanError(
            f"{size_text(target.fit)} have no room for weights: a context of"
            f" {memory.context:,} tokens takes {size_text(memory.total)}; ask for a shorter one"
            " (--context)"
        )
    return Goal(target.fit - memory.total, file_bytes_of, memory)


def fits(plan: Plan, target: Target) -> bool:
    """Whether a plan is within a target."""
    goal = goal_of(plan, target)
    return goal.counted(plan) <= goal.limit


def file_bytes_of(plan: Plan) -> int:
    """Return the bytes of all files of a plan, with headers and padding."""
    return lay_out(plan).n_bytes


def fixed_bytes(goal: Goal, plan: Plan, groups: Iterable[Group]) -> int:
    """Return the bytes of a plan besides those of its groups."""
    types = {t.name: t.type for t in plan.tensors}
    open_bytes = sum(
        Group((t,), ()).n_bytes(types[t.name]) for group in groups for t in group.tensors
    )
    return goal.counted(plan) - open_bytes


def check_possible(plan: Plan, groups: Iterable[Group], target: Target) -> None:
    """Raise PlanError if the smallest file that the rules allow is larger than a target.

    The message says by how much, and which rules take the most.
    """
    groups = tuple(groups)
    goal = goal_of(plan, target)
    least = fixed_bytes(goal, plan, groups) + sum(min(map(g.n_bytes, g.types)) for g in groups)
    if least <= goal.limit:
        return
    smallest = f"{size_text(least)}, {size_text(least - goal.limit)} more"
    if target.bpw is not None:
        smallest = f"{8 * least / plan.n_weights:.3f} bits per weight"
    raise PlanError(
        f"{plan.recipe.path}: no file of {target_text(target)} is possible: the smallest that the"
        f" rules allow has {smallest}; the most is taken by {_most(plan, groups)}; allow types of"
        " fewer bits there, or ask for more"
    )


def _most(plan: Plan, groups: Iterable[Group]) -> str:
    """Return the rules that take the most of the smallest file."""
    takes: dict[str, int] = {}
    is_open = {name for group in groups for name in group.names}
    for group in groups:
        small = min(group.types, key=group.n_bytes)
        rules = ", ".join(dict.fromkeys(one.rule for one in group.tensors))
        for t in group.tensors:
            rows = f", rows of {t.n_per_row}" if t.n_per_row % 256 else ""
            text = f"{rules} (at least {small.name}{rows})"
            takes[text] = takes.get(text, 0) + Group((t,), ()).n_bytes(small)
    for t in plan.tensors:
        if t.name not in is_open:
            text = f"{t.rule} ({t.type.name})"
            takes[text] = takes.get(text, 0) + t.n_bytes
    largest = sorted(takes.items(), key=lambda pair: -pair[1])[:3]
    return "; ".join(f"{text}: {size_text(n)}" for text, n in largest)
