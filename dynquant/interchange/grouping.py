"""Short role selectors for rules: groups of roles, or no role selector for whole layers."""

from __future__ import annotations

from collections.abc import Sequence

from dynquant.interchange.compaction import Column, Taken
from dynquant.recipe.roles import GROUPS

# Fewer roles than this are clearer as a list than as a rule for whole layers.
_MANY = 4


def named_roles(
    rules: Sequence[Taken], columns: Sequence[Column], n_layers: int
) -> list[tuple[Taken, tuple[str, ...]]]:
    """Return each rule with the fewest roles and groups that select its columns.

    A group replaces roles if the rule would match no tensor of the group's other roles.
    columns: all columns of the model; rules: in their order
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
    """Whether earlier rules decide all tensors of a column in a rule's layers."""
    return all(
        any(one.takes(column, layer, n_layers) for one in earlier)
        for layer, _ in column.cells
        if rule.holds(layer, n_layers)
    )


def _with_groups(roles: list[str], others: set[str], known: set[str]) -> tuple[str, ...]:
    """Return the roles, with as many of them as possible replaced by groups.

    others: roles that must not be included; known: the unprotected roles of the model
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
