"""Finds few rules that give every tensor its type: which role has which type in which layers.

The layers of a role with one type are a block. Blocks of one type become one rule if that is
shorter. The type that would need the longest list of layers comes last for each role: it needs no
layers, because earlier rules decide all others. Rules with layers precede rules without; among
them, either types of more bits or rarer types come first, whichever makes the shorter recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dynquant.interchange.layersets import Item, cover, length
from dynquant.quants.table import ALL

# Characters of a rule without its roles and layers (`  - role: []` and `    type: Q4_K`), of
# `layers: []` and of `name: ""`: the length that a recipe saves with one less.
_RULE, _LAYERS, _NAME = 26, 14, 12

# Limits on the time for untrusted files. Beyond them recipes are correct, but may be longer.
# Published files need at most 49 trials, and at most 12 rules of one type are merged.
_MAX_TRIALS, _MAX_TOGETHER = 200, 24


@dataclass(frozen=True)
class Column:
    """Tensors that one set of selectors matches, with one type in each layer.

    role:     "" for tensors without a role of recipes; name: a glob, "" if the role suffices
    cells:    the layer (None for tensors in no layer) and the type of each tensor
    override: the tensors are protected
    """

    role: str
    cells: tuple[tuple[int | None, str], ...]
    name: str = ""
    override: bool = False

    def layers(self, *types: str) -> frozenset[int]:
        """Return the layers of these types, or all layers if no type is given."""
        return frozenset(n for n, t in self.cells if n is not None and (not types or t in types))


@dataclass(frozen=True)
class Taken:
    """A rule: a type for some columns, in some layers (None: no condition for layers).

    wanted: layers that the rule must match; barred: layers that it must not match
    """

    type: str
    columns: tuple[Column, ...]
    items: tuple[Item, ...] | None = None
    wanted: frozenset[int] = field(default_factory=frozenset[int])
    barred: frozenset[int] = field(default_factory=frozenset[int])

    @property
    def cost(self) -> int:
        """The approximate length of the rule in characters."""
        words = sum(len(column.role) + 2 for column in self.columns if column.role)
        globs = {column.name for column in self.columns if column.name}
        words += sum(len(glob) + _NAME for glob in globs)
        return _RULE + words + (0 if self.items is None else _LAYERS + length(self.items))

    def takes(self, column: Column, layer: int | None, n_layers: int) -> bool:
        """Whether the rule matches a cell of a column."""
        return column in self.columns and self.holds(layer, n_layers)

    def holds(self, layer: int | None, n_layers: int) -> bool:
        """Whether the rule matches a layer."""
        if self.items is None:
            return True
        return layer is not None and any(layer in item.layers(n_layers) for item in self.items)


def compact(columns: Sequence[Column], default: str, n_layers: int) -> tuple[Taken, ...]:
    """Return few rules that give all columns their types; the first that matches decides.

    default:  the type that needs no rule; "" if every tensor needs one
    n_layers: without prediction layers
    """
    counts = Counter(t for column in columns for _, t in column.cells)
    most_bits = sorted(counts, key=lambda t: (-ALL[t].bpw, t))
    rarest = sorted(counts, key=lambda t: (counts[t], t))
    groups = _alike(columns)
    tried = [_shortest(groups, default, order, n_layers) for order in (most_bits, rarest)]
    return min(tried, key=_cost)


def _alike(columns: Sequence[Column]) -> list[tuple[Column, ...]]:
    """Group the columns that have the same layers and the same type in each."""
    groups: dict[tuple[object, ...], list[Column]] = {}
    for column in columns:
        alone = () if column.role else (column.name,)
        key = (bool(column.role), column.override, column.cells, column.name, *alone)
        groups.setdefault(key, []).append(column)
    return [tuple(group) for group in groups.values()]


def _shortest(
    groups: Sequence[tuple[Column, ...]], default: str, order: Sequence[str], n_layers: int
) -> tuple[Taken, ...]:
    """Choose the last type of each group, one group at a time, while the rules become shorter.

    order: the order of types for rules with layers
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
    """Return the candidates for the last type of a column, the most promising first."""
    outside = {t for n, t in column.cells if n is None}
    assert len(outside) <= 1, "columns have one type outside the layers"
    if outside:
        return list(outside)
    counts = Counter(t for _, t in column.cells)
    return sorted(counts, key=lambda t: (t != default, -counts[t], t))


def _unruled(column: Column, default: str) -> str:
    """Return the type of tensors without a rule: that of their protection, or the default."""
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
    """Return the rules if each group has a given last type."""
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
            # names without roles are alternatives; a role and a name must both match
            key = (final, column.override, column.name if column.role else None)
            plain.setdefault(key, []).extend(group)
    finals = [Taken(str(key[0]), tuple(columns)) for key, columns in plain.items()]
    for t in order:
        layered[t] = _merged(layered[t], n_layers)
    left = _absorbed(finals, layered, n_layers)
    left.sort(key=lambda rule: order.index(rule.type))
    return (*(rule for t in order for rule in layered[t]), *left)


def _merged(rules: list[Taken], n_layers: int) -> list[Taken]:
    """Merge rules of one type, two at a time, while they become shorter."""
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
    """Return one rule in place of two of a type, or None if no layers fit both."""
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
    """Return the rules without layers whose columns do not fit into rules with layers."""
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
