"""Tensors that get one type, and the types that each such group can have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dynquant.arch.base import TensorName
from dynquant.errors import PlanError
from dynquant.plan.plan import Plan, TensorPlan, padded
from dynquant.quants.table import QuantType
from dynquant.recipe.target import SHARED


@dataclass(frozen=True)
class Group:
    """Tensors that get one type.

    types: those that all of them can have, from most to fewest bits
    """

    tensors: tuple[TensorPlan, ...]
    types: tuple[QuantType, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return tuple(t.name for t in self.tensors)

    def n_bytes(self, qtype: QuantType) -> int:
        """Return the bytes that it takes in a file, with padding."""
        return sum(
            padded(t.n_weights // t.n_per_row * qtype.row_size(t.n_per_row)) for t in self.tensors
        )


def groups_of(
    plan: Plan, asked: Iterable[tuple[str, ...]] | None, usual: Iterable[tuple[str, ...]] = SHARED
) -> tuple[Group, ...]:
    """Return the groups of a plan's tensors whose types are open, in the order of the file.

    asked: roles of a layer that share a type; None takes the usual ones, which only share where
           the recipe allows them the same types

    Raises PlanError for tensors that share a type and have none in common, and for roles that are
    asked to share and of which no layer has two whose types are open.
    """
    set_of = {r: roles for roles in (usual if asked is None else asked) for r in roles}
    found: dict[object, list[TensorPlan]] = {}
    for t in plan.tensors:
        if t.name in plan.choices:
            parts = TensorName.parse(t.name)
            roles = set_of.get(parts.role)
            key: object = t.name
            if roles and parts.layer is not None:
                key = roles, parts.layer, plan.choices[t.name] if asked is None else None
            found.setdefault(key, []).append(t)
    groups = tuple(Group(tuple(ts), _types(plan, ts)) for ts in found.values())
    problems = [*_without_types(groups, plan.choices), *_never_shared(plan, groups, asked or ())]
    PlanError.raise_any(problems)
    return groups


def _never_shared(
    plan: Plan, groups: Iterable[Group], asked: Iterable[tuple[str, ...]]
) -> Iterator[str]:
    together = [{TensorName.parse(n).role for n in g.names} for g in groups]
    for roles in asked:
        if not any(len(found & set(roles)) > 1 for found in together):
            yield (
                f"{plan.recipe.path}: `share` ({', '.join(roles)}) joins no tensors: no layer has"
                " two of these roles whose types are open; correct or remove it"
            )


def _types(plan: Plan, tensors: Iterable[TensorPlan]) -> tuple[QuantType, ...]:
    """Return the types that all tensors can have; those without importance need none."""
    first, *others = [
        [c for c in plan.choices[t.name] if t.name in plan.importance or not c.needs_importance]
        for t in tensors
    ]
    return tuple(c for c in first if all(c in other for other in others))


def _without_types(
    groups: Iterable[Group], choices: Mapping[str, tuple[QuantType, ...]]
) -> Iterator[str]:
    for group in groups:
        if group.types:
            continue
        allowed = "; ".join(f"{n}: {', '.join(c.name for c in choices[n])}" for n in group.names)
        if len(group.names) > 1:
            yield (
                f"{group.tensors[0].rule}: tensors that share a type have none in common"
                f" ({allowed}); change `choose`, or `share` in `target`"
            )
        else:
            yield (
                f"{group.tensors[0].rule}: needs importance, which the imatrix does not have"
                f" ({allowed}); allow types that do without"
            )
