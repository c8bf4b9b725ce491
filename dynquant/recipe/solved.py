"""A recipe whose open types are decided, as the text of an ordinary recipe that people can edit.

Each rule with `choose` becomes rules for the roles and layers of its tensors: the fewest layers of
a role are named, and one rule without layers has the rest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from dynquant.arch.base import TensorName
from dynquant.quants.table import QuantType
from dynquant.recipe.layers import LayerRange
from dynquant.recipe.resolved import rule_line, text_of
from dynquant.recipe.roles import ROLES
from dynquant.recipe.rules import Recipe, Rule, Selectors
from dynquant.recipe.target import NO_TARGET

Note = Callable[[Sequence[str]], str]
"""Returns a comment for the tensors of a rule."""


@dataclass(frozen=True)
class Decided:
    """A tensor whose type was open: the place of its rule, and its type."""

    name: str
    rule: str
    type: QuantType


def solved_text(
    recipe: Recipe,
    decided: Sequence[Decided],
    tensors: Iterable[str],
    *,
    name: str,
    head: Sequence[str] = (),
    note: Note = lambda _: "",
    by_name: Collection[str] = (),
) -> str:
    """Return the text of a recipe that gives the decided types.

    decided: the tensors whose types were open
    tensors: the names of all tensors of the model
    name:    of the new recipe
    head:    lines of the comment at the beginning
    note:    returns the comment of a rule, for the names of its tensors
    by_name: roles whose tensors are written by name: a role and a layer mean several of them
    """
    writer = _Writer(decided, tensors, note, by_name)
    lines = [line for rule in recipe.rules for line in writer.lines(rule)]
    return text_of(replace(recipe, name=name, target=NO_TARGET), head, lines)


@dataclass(frozen=True)
class _Selected:
    """A rule to write for the tensors of these names: by roles and layers, or by name."""

    type: QuantType
    names: tuple[str, ...]
    roles: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None

    @property
    def is_rest(self) -> bool:
        """Whether the rule has what is left of its roles."""
        return bool(self.roles) and self.layers is None


class _Writer:
    """Writes the rules in their order; tensors that one has decided do not count any more."""

    def __init__(
        self,
        decided: Sequence[Decided],
        tensors: Iterable[str],
        note: Note,
        by_name: Collection[str],
    ) -> None:
        self._decided = decided
        self._note = note
        self._by_name = by_name
        self._others: dict[str, set[str]] = {}  # by role: tensors that no rule here decides
        names = {d.name for d in decided}
        for tensor in tensors:
            if tensor not in names:
                self._others.setdefault(TensorName.parse(tensor).role, set()).add(tensor)

    def lines(self, rule: Rule) -> Iterator[str]:
        """Yield the lines of a rule: its own, or those of the types that it left open."""
        if rule.choice is None:
            yield rule_line(rule)
            return
        mine = [d for d in self._decided if d.rule == rule.where]
        for selected in self._selected(mine):
            comment = self._note(selected.names)
            line = rule_line(_rule_of(rule, selected))
            yield f"{line}  # {comment}" if comment else line

    def _selected(self, mine: Sequence[Decided]) -> Iterator[_Selected]:
        by_role: dict[str, list[Decided]] = {}
        for d in mine:
            by_role.setdefault(TensorName.parse(d.name).role, []).append(d)
        alike: dict[tuple[tuple[int, ...] | None, str, bool], list[_Selected]] = {}
        order: list[list[_Selected]] = []
        for role, tensors in by_role.items():
            for one in self._of_role(role, tensors):
                key = one.layers, one.type.name, bool(one.roles)
                if key not in alike:
                    alike[key] = []
                    order.append(alike[key])
                alike[key].append(one)
        # A rule without layers has the rest of its roles, so it follows those with layers.
        for same in sorted(order, key=lambda same: same[0].is_rest):
            roles = tuple(role for one in same for role in one.roles)
            names = tuple(name for one in same for name in one.names)
            yield _Selected(same[0].type, names, roles, same[0].layers)

    def _of_role(self, role: str, tensors: Sequence[Decided]) -> Iterator[_Selected]:
        types: dict[str, list[Decided]] = {}
        for d in tensors:
            types.setdefault(d.type.name, []).append(d)
        if role not in ROLES or role in self._by_name:
            for group in types.values():
                yield _Selected(group[0].type, tuple(d.name for d in group))
            return
        groups = sorted(types.values(), key=len)
        elsewhere = self._others.get(role) or any(
            d.rule != tensors[0].rule and TensorName.parse(d.name).role == role
            for d in self._decided
        )
        for i, group in enumerate(groups):
            layers = [TensorName.parse(d.name).layer for d in group]
            names = tuple(d.name for d in group)
            is_rest = i == len(groups) - 1 and not elsewhere
            known = tuple(n for n in layers if n is not None)
            has_layers = len(known) == len(layers)
            part = None if is_rest or not has_layers else known
            yield _Selected(group[0].type, names, (role,), part)


def _rule_of(rule: Rule, selected: _Selected) -> Rule:
    layers = tuple(_ranges(selected.layers)) if selected.layers is not None else ()
    return replace(
        rule,
        action="type",
        type=selected.type,
        choice=None,
        match=Selectors(selected.roles, layers)
        if selected.roles
        else Selectors(names=selected.names),
        excluded=(),
        optional=False,
        inherited=False,
    )


def _ranges(layers: Iterable[int]) -> Iterator[LayerRange]:
    """Yield layers as ranges."""
    for _, run in groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0]):
        numbers = [layer for _, layer in run]
        yield LayerRange(numbers[0], numbers[-1])


def types_of(decided: Iterable[Decided]) -> Mapping[str, QuantType]:
    """Return the types of decided tensors, by name."""
    return {d.name: d.type for d in decided}
