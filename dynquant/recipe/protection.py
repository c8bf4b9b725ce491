"""What no recipe decides without saying so: the built-in rules, and types that stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from dynquant.arch.base import ModelTensor
from dynquant.quants.table import KEPT, QuantType
from dynquant.recipe.facts import Facts
from dynquant.recipe.loader import built_in_rules
from dynquant.recipe.selection import Selection


@dataclass(frozen=True)
class Protection:
    """Why a tensor has a type that is not the recipe's; fixed: no rule can override it."""

    reason: str
    type: QuantType
    fixed: bool = False


def protection(tensor: ModelTensor) -> Protection | None:
    """Return what protects a tensor, or None where the recipe decides.

    What no block type can be made of (KEPT) stays as it is stored.
    """
    if kept := KEPT.get(tensor.source.stored.name):
        reason = "double precision" if kept.name == "F64" else "integers"
        return Protection(reason, kept, fixed=True)
    for selection, protected in _built_in():
        if not selection.miss(tensor):
            return protected
    return None


@cache
def _built_in() -> tuple[tuple[Selection, Protection], ...]:
    facts = Facts("", 0)  # they ask nothing of the model
    found: list[tuple[Selection, Protection]] = []
    for rule in built_in_rules():
        assert rule.type is not None, "the built-in rules give types"
        found.append((Selection(rule, facts), Protection(rule.note, rule.type)))
    return tuple(found)
