"""Tensors that recipes change only with `override: true`, or never."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from dynquant.arch.base import ModelTensor
from dynquant.quants.table import KEPT, QuantType
from dynquant.recipe.facts import Facts
from dynquant.recipe.loader import built_in_rules
from dynquant.recipe.selection import Selection


@dataclass(frozen=True)
class Protection:
    """The type of a protected tensor and the reason; fixed: no rule can override it."""

    reason: str
    type: QuantType
    fixed: bool = False


def protection(tensor: ModelTensor, architecture: str = "") -> Protection | None:
    """Return the protection of a tensor, or None if the recipe decides its type.

    architecture: of the model; if it is "", rules for single architectures do not apply

    Tensors of types that are not quantized (KEPT: integers, F64) keep the stored type.
    """
    if kept := KEPT.get(tensor.source.stored.name):
        reason = "double precision" if kept.name == "F64" else "integers"
        return Protection(reason, kept, fixed=True)
    whole = replace(
        tensor, name=tensor.changes
    )  # a factor of a change is protected like its tensor
    for selection, protected in _built_in(architecture):
        if not selection.miss(whole):
            return protected
    return None


@cache
def _built_in(architecture: str) -> tuple[tuple[Selection, Protection], ...]:
    facts = Facts(architecture, 0)  # the built-in rules have no other conditions
    found: list[tuple[Selection, Protection]] = []
    for rule in built_in_rules():
        assert rule.type is not None, "the built-in rules give types"
        found.append((Selection(rule, facts), Protection(rule.note, rule.type)))
    return tuple(found)
