"""From the type of each tensor to few rules: which role takes which type, and in which layers.

A role's layers of one type are a block. Blocks of one type become one rule where that is shorter,
and the type of which a role's rules would need most words is its last: that rule needs no layers,
as all others came before. Rules with layers stand before those without; among them, types of more
bits stand first, or the rarer ones, whichever makes the shorter recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dynquant.interchange.layersets import Item, cover, length
from dynquant.quants.table import ALL

# Letters of a rule around its roles and layers, `  - role: []` and `    type: Q4_K`, and of its
# `layers: []` and `name: ""`: what a recipe is short of where it has one less.
_RULE, _LAYERS, _NAME = 26, 14, 12

# Beyond these a recipe is right but longer than it could be: what a stranger's file may cost. Of
# published files, the most have 49 choices tried, and 12 rules of one type put together.
_MAX_TRIALS, _MAX_TOGETHER = 200, 24


@dataclass(frozen=True)
class Column:
    """Tensors that one set of selectors takes, of which each layer has one type.

    role:     "" for tensors of no role that recipes know; name: a glob, "" where the role is enough
    cells:    the layer, None outside of them, and the type of each tensor
    override: they are protected
    """

    role: str
    cells: tuple[tuple[int | None, str], ...]
    name: str = ""
    override: bool = False

    def layers(self, *types: str) -> frozenset[int]:
        """Return the layers of these types, or all where none is given."""
        return frozenset(n for n, t in self.cells if n is not None and (not types or t in types))


@dataclass(frozen=True)
class Taken:
    """A rule: a type for some columns, in some layers (None: wherever they are).

    wanted: layers that it is for; barred: layers that it must not take, of any of the columns
    """

    type: str
    columns: tuple[Column, ...]
    items: tuple[Item, ...] | None = None
    wanted: frozenset[int] = field(default_factory=frozenset[int])
    barred: frozenset[int] = field(default_factory=frozenset[int])

    @property
    def cost(self) -> int:
        """About as many letters as the rule takes."""
        words = sum(len(column.role) + 2 for column in self.columns if column.role)
        globs = {column.name for column in self.columns if column.name}
        words += sum(len(glob) + _NAME for glob in globs)
        return _RULE + words + (0 if self.items is None else _LAYERS + length(self.items))

    def takes(self, column: Column, layer: int | None, n_layers: int) -> bool:
        """Whether it decides a cell of a column that no earlier rule decides."""
        return column in self.columns and self.holds(layer, n_layers)

    def holds(self, layer: int | None, n_layers: int) -> bool:
        """Whether a layer is one of the rule's."""
        if self.items is None:
            return True
        return layer is not None and any(layer in item.layers(n_layers) for item in self.items)


def compact(columns: Sequence[Column], default: str, n_layers: int) -> tuple[Taken, ...]:
    """Return few rules, the first that takes a tensor deciding, that give all columns their types.

    default:  the type that needs no rule; "" where every tensor needs one
    n_layers: the model's own, those that predict further ahead not counted
    """
    counts = Counter(t for column in columns for _, t in column.cells)
    most_bits = sorted(counts, key=lambda t: (-ALL[t].bpw, t))
    rarest = sorted(counts, key=lambda t: (counts[t], t))
    groups = _alike(columns)
    tried = [_shortest(groups, default, order, n_layers) for order in (most_bits, rarest)]
    return min(tried, key=_cost)


def _alike(columns: Sequence[Column]) -> list[tuple[Column, ...]]:
    """Put columns together that have the same type in each layer, and have the same layers."""
    groups: dict[tuple[object, ...], list[Column]] = {}
    for column in columns:
        alone = () if column.role else (column.name,)
        key = (bool(column.role), column.override, column.cells, column.name, *alone)
        groups.setdefault(key, []).append(column)
    return [tuple(group) for group in groups.values()]


def _shortest(
    groups: Sequence[tuple[Column, ...]], default: str, order: Sequence[str], n_layers: int
) -> tuple[Taken, ...]:
    """Choose the last type of each group: one after the other, while that makes the rules shorter.

    order: types in the order in which their rules with layers stand
    """
    choices = [_last_types(group[0], _unruled(group[0], default)) for group in groups]
    last = [types[0] for types in choices]
    best = _rules(groups, last, default, order, n_layers)
    better, trials = True, 0
    while better:
        better = False
        for i, types in enumerate(choices):
            for other in types:
                if other == last[i] or trials == _MAX_TRIALS:
                    continue
                trials += 1
                tried = [*last[:i], other, *last[i + 1 :]]
                rules = _rules(groups, tried, default, order, n_layers)
                if _cost(rules) < _cost(best):
                    last, best, better = tried, rules, True
    return best


def _last_types(column: Column, default: str) -> list[str]:
    """Return the types that a column can have without layers, the most promising first."""
    outside = {t for n, t in column.cells if n is None}
    assert len(outside) <= 1, "columns have one type outside the layers"
    if outside:
        return list(outside)
    counts = Counter(t for _, t in column.cells)
    return sorted(counts, key=lambda t: (t != default, -counts[t], t))


def _unruled(column: Column, default: str) -> str:
    """Return the type that tensors have where no rule takes them: that of their protection."""
    return "F32" if column.override else default


def _cost(rules: Iterable[Taken]) -> int:
    return sum(rule.cost for rule in rules)


def _rules(
    groups: Sequence[tuple[Column, ...]],
    last: Sequence[str],
    default: str,
    order: Sequence[str],
    n_layers: int,
) -> tuple[Taken, ...]:
    """Return the rules where each group has a given type without layers."""
    layered: dict[str, list[Taken]] = {t: [] for t in order}
    plain: dict[tuple[object, ...], list[Column]] = {}
    for group, final in zip(groups, last, strict=True):
        column = group[0]
        types = {t for n, t in column.cells if n is not None} - {final}
        for i, t in enumerate(order):
            if t not in types:
                continue
            wanted = column.layers(t)
            barred = column.layers(*{final, *(later for later in order[i + 1 :])} - {t})
            layered[t].append(Taken(t, group, cover(wanted, barred, n_layers), wanted, barred))
        if final != _unruled(column, default):
            # names of no role are alternatives to each other, roles and a name must both hold
            key = (final, column.override, column.name if column.role else None)
            plain.setdefault(key, []).extend(group)
    finals = [Taken(str(key[0]), tuple(columns)) for key, columns in plain.items()]
    for t in order:
        layered[t] = _merged(layered[t], n_layers)
    left = _absorbed(finals, layered, n_layers)
    left.sort(key=lambda rule: order.index(rule.type))
    return (*(rule for t in order for rule in layered[t]), *left)


def _merged(rules: list[Taken], n_layers: int) -> list[Taken]:
    """Put rules of one type together, two at a time, while that makes them shorter."""
    rules = list(rules)
    while len(rules) <= _MAX_TOGETHER:
        pairs = [
            (a.cost + b.cost - both.cost, i, j, both)
            for i, a in enumerate(rules)
            for j, b in enumerate(rules[:i])
            if (both := _together(a, b, n_layers))
        ]
        saved, i, j, both = max(pairs, key=lambda pair: pair[0], default=(0, 0, 0, None))
        if both is None or saved <= 0:
            return rules
        rules[j] = both
        del rules[i]
    return rules


def _together(a: Taken, b: Taken, n_layers: int) -> Taken | None:
    """Return one rule in place of two of a type, or None where no layers fit both."""
    one, other = a.columns[0], b.columns[0]
    if one.override != other.override or bool(one.role) != bool(other.role):
        return None
    wanted, barred = a.wanted | b.wanted, a.barred | b.barred
    if (one.role and one.name != other.name) or not wanted.isdisjoint(barred):
        return None
    columns = (*b.columns, *a.columns)
    return Taken(a.type, columns, cover(wanted, barred, n_layers), wanted, barred)


def _absorbed(
    finals: Sequence[Taken], layered: Mapping[str, list[Taken]], n_layers: int
) -> list[Taken]:
    """Leave out rules without layers whose columns fit into shorter ones with layers."""
    left: list[Taken] = []
    for rule in finals:
        rules = list(layered[rule.type])
        before = rule.cost + _cost(rules)
        for column in rule.columns:
            types = {t for _, t in column.cells}
            if not column.role or len(types) > 1 or None in dict(column.cells):
                break
            wanted = column.layers()
            alone = Taken(rule.type, (column,), (), wanted)
            joined = [(i, t) for i, r in enumerate(rules) if (t := _together(alone, r, n_layers))]
            if not joined:
                break
            i, joint = min(joined, key=lambda found: found[1].cost - rules[found[0]].cost)
            rules[i] = joint
        else:
            if _cost(rules) < before:
                layered[rule.type][:] = rules
                continue
        left.append(rule)
    return left
