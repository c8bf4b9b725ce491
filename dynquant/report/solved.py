"""What the types of a solved recipe cost and buy: a line, a table, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import fsum
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynquant.arch.base import TensorName
from dynquant.budget.comments import target_text
from dynquant.budget.groups import Group as Sharing
from dynquant.budget.sizes import Size, sizes_of
from dynquant.budget.solve import Problem, Solved
from dynquant.figures import size_text
from dynquant.report.tables import plain_table


@dataclass(frozen=True)
class RoleCost:
    """The open tensors of one role.

    types:  their numbers by type, the most frequent first
    damage: expected damage, in nats
    next_price: expected damage that one more byte takes off, at best; 0.0 if no type has more bits
    """

    role: str
    types: tuple[tuple[str, int], ...]
    n_weights: int
    n_bytes: int
    damage: float
    next_price: float

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a weight."""
        return 8 * self.n_bytes / self.n_weights


@dataclass(frozen=True)
class BudgetPicture:
    """A size on the page of a plan.

    asked, found: texts
    roles:        what each costs and buys
    sizes:        the best choices for other sizes; `chosen` is the one whose bytes are nearest
    """

    asked: str
    found: str
    damage: float
    roles: tuple[RoleCost, ...]
    sizes: tuple[Size, ...]
    chosen: int


def budget_picture(problem: Problem, solved: Solved) -> BudgetPicture:
    """Return what the page of a plan shows of its size."""
    sizes = sizes_of(problem)
    n_bytes = solved.plan.tensor_bytes
    nearest = min(range(len(sizes)), key=lambda i: abs(sizes[i].tensor_bytes - n_bytes))
    return BudgetPicture(
        target_text(solved.target),
        solved_line(solved),
        solved.solution.damage,
        tuple(roles_of(solved)),
        tuple(sizes),
        nearest,
    )


def solved_line(solved: Solved) -> str:
    """Return what was found, in one line."""
    plan, solution = solved.plan, solved.solution
    proof = "" if solution.is_best else " (nearly the best)"
    if not solution.price:
        proof = "; every tensor has its best type, and the rest of the size is not used"
    memory = ""
    if solved.memory:
        its = solved.memory
        memory = (
            f", and {size_text(its.total)} of memory for {its.context:,} tokens: cache"
            f" {size_text(its.cache + its.state)}, buffers {size_text(its.buffers)}"
        )
    return (
        f"{solved.recipe.name}: {size_text(solved.file_bytes)}, {plan.bits_per_weight:.3f} bits per"
        f" weight{memory}; expected KL divergence {solution.damage:.3g}{proof}"
    )


def roles_of(solved: Solved) -> list[RoleCost]:
    """Return what each role costs and buys, the most damage first."""
    parts: dict[str, list[tuple[Sharing, int]]] = {}
    for i, group in enumerate(solved.groups):
        for t in group.tensors:
            one = Sharing((t,), group.types)
            parts.setdefault(TensorName.parse(t.name).role, []).append((one, i))
    found = [_cost(role, some, solved) for role, some in parts.items()]
    return sorted(found, key=lambda cost: (-cost.damage, cost.role))


def _cost(role: str, parts: list[tuple[Sharing, int]], solved: Solved) -> RoleCost:
    types = Counter(solved.chosen[i].name for _, i in parts)
    return RoleCost(
        role,
        tuple(types.most_common()),
        sum(one.tensors[0].n_weights for one, _ in parts),
        sum(one.n_bytes(solved.chosen[i]) for one, i in parts),
        fsum(_damage(solved, i) / len(solved.groups[i].tensors) for _, i in parts),
        max((_next(solved, i) for i in {i for _, i in parts}), default=0.0),
    )


def _damage(solved: Solved, i: int) -> float:
    return solved.damage[i][solved.chosen[i].name]


def _next(solved: Solved, i: int) -> float:
    """Return the most damage that a byte more takes off a group."""
    group, now = solved.groups[i], solved.chosen[i]
    steps = (
        (_damage(solved, i) - solved.damage[i][t.name]) / (group.n_bytes(t) - group.n_bytes(now))
        for t in group.types
        if group.n_bytes(t) > group.n_bytes(now)
    )
    return max(steps, default=0.0)


def solved_tables(solved: Solved) -> RenderableType:
    """Return a table of the roles, and the totals."""
    table: Table = plain_table(
        "role", "types", "bytes>", "bpw>", "of the loss>", "loss for 1 MB more>"
    )
    total = solved.solution.damage
    for cost in roles_of(solved):
        table.add_row(
            cost.role,
            Text(", ".join(f"{name} {n}" for name, n in cost.types)),
            f"{cost.n_bytes:,}",
            f"{cost.bits_per_weight:.3f}",
            f"{100 * cost.damage / total:.1f} %" if total else "-",
            f"{-1e6 * cost.next_price:.2g}" if cost.next_price else "-",
        )
    return Group(table, Text(), *map(Text, _lines(solved)))


def _lines(solved: Solved) -> Iterator[str]:
    yield f"asked   {target_text(solved.target)}"
    yield f"found   {solved_line(solved)}"
    yield f"price   {-1e6 * solved.solution.price:.2g} nats for one more megabyte"


def solved_json(solved: Solved) -> dict[str, Any]:
    """Return what `dynquant solve --json` prints."""
    its = solved.memory
    return {
        "recipe": solved.recipe.name,
        "text": solved.recipe.text,
        "file_bytes": solved.file_bytes,
        "bits_per_weight": solved.plan.bits_per_weight,
        "expected_kld": solved.solution.damage,
        "least_possible_kld": solved.solution.bound,
        "price_per_byte": solved.solution.price,
        "memory": its
        and {
            "context": its.context,
            "cache": its.cache,
            "state": its.state,
            "buffers": its.buffers,
        },
        "roles": [
            {
                "role": cost.role,
                "types": dict(cost.types),
                "bytes": cost.n_bytes,
                "bits_per_weight": cost.bits_per_weight,
                "expected_kld": cost.damage,
                "price_per_byte": cost.next_price,
            }
            for cost in roles_of(solved)
        ],
        "tensors": {t.name: t.type.name for t in solved.plan.tensors},
    }
