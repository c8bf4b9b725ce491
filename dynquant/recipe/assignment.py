"""What a recipe makes of a model: a type for every tensor, and what decided it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dynquant.quants.table import QuantType

BUILT_IN = "built-in: "
"""What the rule of a protected tensor begins with."""


@dataclass(frozen=True)
class Assignment:
    """The type of one tensor, and what decided it.

    rule:       `recipes/small.yaml:14`, `recipes/small.yaml:9 default`, or `built-in: <why>`
    instead_of: the type that the rule gave, where the fallback had to replace it
    note:       what the rule says of itself
    """

    type: QuantType
    rule: str
    instead_of: QuantType | None = None
    note: str = ""


@dataclass(frozen=True)
class Assigned:
    """The assignment of every tensor by name, and what the user should hear about them.

    dropped: tensors that a rule leaves out, with the rule
    """

    assignments: dict[str, Assignment]
    warnings: tuple[str, ...]
    dropped: Mapping[str, str] = field(default_factory=dict[str, str])
