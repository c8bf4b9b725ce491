"""A recipe's result for a model: the type of every tensor, and the rule that gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dynquant.quants.table import QuantType
from dynquant.recipe.feedback import UNSET, Feedback

BUILT_IN = "built-in: "
"""The prefix of `Assignment.rule` for protected tensors."""


@dataclass(frozen=True)
class Assignment:
    """The type of one tensor, and the rule that gave it.

    rule:       `recipes/small.yaml:14`, `recipes/small.yaml:9 default`, or `built-in: <why>`
    instead_of: the type that the rule gave, if the fallback had to replace it
    note:       the `note` of the rule
    on_grid:    the type is the grid that the stored floats lie on, which the rule keeps
    feedback:   what the rule says about error feedback, or else the recipe
    choice:     the types that the rule leaves open, from most to fewest bits; `type` is the first
    """

    type: QuantType
    rule: str
    instead_of: QuantType | None = None
    note: str = ""
    on_grid: bool = False
    feedback: Feedback = UNSET
    choice: tuple[QuantType, ...] = ()


@dataclass(frozen=True)
class Assigned:
    """The assignment of every tensor by name, and warnings for the user.

    dropped: for each tensor that a rule leaves out, the place of the rule
    """

    assignments: dict[str, Assignment]
    warnings: tuple[str, ...]
    dropped: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def open(self) -> dict[str, tuple[QuantType, ...]]:
        """The types of each tensor whose rule leaves them to the size of the file."""
        return {name: given.choice for name, given in self.assignments.items() if given.choice}


def with_types(assigned: Assigned, types: Mapping[str, QuantType]) -> Assigned:
    """Return assignments with types for tensors whose rule leaves them open."""
    found = {
        name: replace(given, type=types[name]) if given.choice and name in types else given
        for name, given in assigned.assignments.items()
    }
    return replace(assigned, assignments=found)
