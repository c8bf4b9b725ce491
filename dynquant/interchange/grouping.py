"""Short names for what a rule takes: a group for its roles, none at all for whole layers."""

from __future__ import annotations

from collections.abc import Sequence

from dynquant.interchange.compaction import Column, Taken
from dynquant.recipe.roles import GROUPS

# Fewer roles than this say more than "everything in these layers" would.
_MANY = 4


def named_roles(
    rules: Sequence[Taken], columns: Sequence[Column], n_layers: int
) -> list[tuple[Taken, tuple[str, ...]]]:
    """Return each rule with the roles and groups that select its columns, in as few words as fit.

    A group stands for roles where no tensor of its other roles is left for the rule to take.
    columns: all of the model; rules: in their order
    """
    free = [column for column in columns if not column.override]
    named: list[tuple[Taken, tuple[str, ...]]] = []
    for i, rule in enumerate(rules):
        roles = dict.fromkeys(column.role for column in rule.columns if column.role)
        first = rule.columns[0]
        if first.override or first.name:
            named.append((rule, tuple(roles)))
            continue
        others = {
            column.role
            for column in free
            if column not in rule.columns and not _decided(rule, column, rules[:i], n_layers)
        }
        if rule.items is not None and len(roles) >= _MANY and not others:
            named.append((rule, ()))
            continue
        named.append((rule, _with_groups(list(roles), others, {c.role for c in free})))
    return named


def _decided(rule: Taken, column: Column, earlier: Sequence[Taken], n_layers: int) -> bool:
    """Whether earlier rules take all tensors of a column in a rule's layers."""
    return all(
        any(one.takes(column, layer, n_layers) for one in earlier)
        for layer, _ in column.cells
        if rule.holds(layer, n_layers)
    )


def _with_groups(roles: list[str], others: set[str], known: set[str]) -> tuple[str, ...]:
    """Return the roles with groups in place of as many of them as possible.

    others: roles that must not be named; known: those of the model that recipes decide
    """
    words: list[str] = list(roles)
    left = set(roles)
    by_use = sorted(GROUPS.items(), key=lambda g: (-len(g[1] & left), len(g[1] & known), len(g[1])))
    for group, members in by_use:
        named = members & left
        if len(named) < 2 or members & others:
            continue
        words[min(words.index(role) for role in named)] = group
        words = [word for word in words if word not in named]
        left -= named
    return tuple(words)
