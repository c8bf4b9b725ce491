"""Why a tensor has its type: the result of every rule of a recipe for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynquant.arch.base import ModelTensor
from dynquant.recipe.assignment import BUILT_IN
from dynquant.recipe.facts import Facts
from dynquant.recipe.match import may_take, where_default
from dynquant.recipe.protection import protection
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.selection import Selection

Verdict = Literal["takes", "misses", "protected", "unreached"]


@dataclass(frozen=True)
class Step:
    """One rule, tried for one tensor.

    where:   its place, or `built-in`
    says:    its selectors; action: its type or action, such as `Q6_K` or `drop`
    verdict: "unreached" if the rule matches, but an earlier one decides
    why:     for a rule that does not match, the differing value of the tensor or the model
    fallback: the rule's types for rows that its block does not divide; None for the recipe's
    feedback: what the rule says about error feedback; empty for what the recipe says
    """

    where: str
    says: str
    action: str
    verdict: Verdict
    why: str = ""
    fallback: tuple[str, ...] | None = None
    feedback: str = ""


def explain(recipe: Recipe, tensor: ModelTensor, facts: Facts) -> tuple[Step, ...]:
    """Return the rules of a recipe in their order, each with its result for the tensor.

    The last step is the built-in protection if there is one, else the default.
    """
    guard = protection(tensor, facts.architecture)
    steps: list[Step] = []
    taken = False
    for rule in recipe.rules:
        selection = Selection(rule, facts)
        if miss := selection.miss(tensor):
            verdict, why = "misses", _why(selection, miss, tensor)
        elif not may_take(rule, guard):
            assert guard is not None, "only protected tensors may not be taken"
            verdict, why = "protected", f"{guard.reason}; the rule has no `override: true`"
        else:
            verdict, why, taken = ("unreached" if taken else "takes"), "", True
        fallback = None if rule.fallback is None else tuple(t.name for t in rule.fallback)
        feedback = str(rule.feedback)
        steps.append(Step(rule.where, str(rule), _action(rule), verdict, why, fallback, feedback))
    verdict = "unreached" if taken else "takes"
    if guard:
        steps.append(Step(BUILT_IN.rstrip(": "), guard.reason, guard.type.name, verdict))
    else:
        where = where_default(recipe).removesuffix(" default")
        steps.append(Step(where, "default", recipe.default.name, verdict))
    return tuple(steps)


def _action(rule: Rule) -> str:
    if rule.choice:
        return f"choose {rule.choice}"
    return rule.type.name if rule.type else rule.action


def _why(selection: Selection, miss: str, tensor: ModelTensor) -> str:
    """Return the tensor's or model's value for the first selector that does not match."""
    layer = tensor.parts.layer
    excluding = (str(one.selectors) for one in selection.excluded if one.selects(tensor))
    return {
        "not": f"`not` ({next(excluding, '')}) excludes it",
        "when": selection.unmet,
        "role": f"role is {tensor.parts.role}",
        "layers": "in no layer" if layer is None else f"layer is {layer}",
        "name": "name differs",
        "shape": selection.match.shape_miss(tensor),
    }[miss]
