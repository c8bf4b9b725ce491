"""A recipe whose open types are decided, as an ordinary recipe that people can read and edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from dynquant.arch.base import Model, ModelTensor
from dynquant.interchange.compaction import Taken, compact
from dynquant.interchange.from_gguf import by_name, columns_of, written
from dynquant.interchange.grouping import named_roles
from dynquant.interchange.recipe_text import WrittenRule
from dynquant.measure.grids import OnGrid
from dynquant.plan.resolve import Resolved, resolve
from dynquant.quants.table import QuantType
from dynquant.recipe.assignment import Assignment
from dynquant.recipe.feedback import Feedback
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.resolved import rule_lines, text_of
from dynquant.recipe.rules import Recipe
from dynquant.recipe.target import NO_TARGET

Comment = Callable[[Sequence[str]], str]
"""Returns the comment of a rule, for the names of its tensors."""


@dataclass(frozen=True)
class Open:
    """A model, a recipe with `choose`, and what it gives the tensors.

    importance: whether there is an imatrix that the recipe uses
    """

    model: Model
    recipe: Recipe
    importance: bool
    grids: Mapping[str, OnGrid]

    def resolved(self, recipe: Recipe) -> Resolved:
        """Return what a recipe gives the tensors."""
        return resolve(self.model, recipe, importance=self.importance, grids=self.grids)

    @cached_property
    def own(self) -> Resolved:
        """What its recipe gives the tensors."""
        return self.resolved(self.recipe)

    @property
    def tensors(self) -> tuple[ModelTensor, ...]:
        """The tensors of the file."""
        return self.own.model.tensors

    @property
    def assignments(self) -> Mapping[str, Assignment]:
        """The types of tensors by name; those with a choice are to be decided."""
        return self.own.assigned.assignments


def decided_recipe(
    given: Open,
    types: Mapping[str, QuantType],
    *,
    name: str,
    description: str,
    head: Sequence[str],
    comment: Comment,
) -> Recipe:
    """Return a recipe that gives the open tensors their types, and all others what they have.

    types:   of the tensors whose types are open, by name
    name, description: of the new recipe
    head:    lines of the comment at the beginning
    comment: returns the comment of a rule

    The rules without `choose` come first. Few rules for roles and layers follow; tensors that
    these would give other types have rules by name, which precede all others.
    """
    rules = list(chain.from_iterable(_rules(given, types, comment)))
    kept = [line for rule in given.recipe.rules if not rule.choice for line in rule_lines(rule)]
    lines = [*kept, *chain.from_iterable(rule.lines() for rule in rules)]
    source = replace(given.recipe, name=name, description=description, target=NO_TARGET)

    def parsed(lines: Sequence[str]) -> Recipe:
        return parse_recipe(text_of(source, head, lines), f"{name}.yaml", name)

    recipe = parsed(lines)
    if wrong := _wrong(given, recipe, types):
        recipe = parsed([*_by_name(given, wrong, types), *lines])
        wrong = _wrong(given, recipe, types)
    assert not wrong, f"the recipe gives other types to {[t.name for t in wrong]}"
    return recipe


def _rules(
    given: Open, types: Mapping[str, QuantType], comment: Comment
) -> Iterable[list[WrittenRule]]:
    """Yield the rules of the open tensors; those with other settings of feedback apart."""
    by_feedback: dict[Feedback, list[ModelTensor]] = {}
    for t in given.tensors:
        if t.name in types:
            by_feedback.setdefault(_own_feedback(given, t.name), []).append(t)
    n_layers = given.own.facts.n_layers
    for feedback, tensors in by_feedback.items():
        named = {t.name: types[t.name].name for t in tensors}
        columns = columns_of(tensors, named)
        taken = compact(columns, "", n_layers)
        left = {t.name: t for t in tensors}
        rules: list[WrittenRule] = []
        for rule, roles in named_roles(taken, columns, n_layers):
            mine = [n for n, t in left.items() if _takes(rule, t, n_layers)]
            for n in mine:
                del left[n]
            rules.append(
                replace(written(rule, roles), feedback=str(feedback), comment=comment(mine))
            )
        yield rules


def _takes(rule: Taken, tensor: ModelTensor, n_layers: int) -> bool:
    parts = tensor.parts
    return any(
        rule.takes(column, parts.layer, n_layers)
        and (column.role == parts.role or not column.role)
        and any(layer == parts.layer for layer, _ in column.cells)
        for column in rule.columns
    )


def _own_feedback(given: Open, name: str) -> Feedback:
    """Return what the rule of a tensor says about feedback, unless the recipe says the same."""
    found = given.assignments[name].feedback
    return Feedback() if found == given.recipe.feedback else found


def _wrong(given: Open, recipe: Recipe, types: Mapping[str, QuantType]) -> list[ModelTensor]:
    """Return the tensors that a recipe gives another type, or other feedback."""
    found = given.resolved(recipe).assigned.assignments
    return [
        t
        for t in given.tensors
        if found[t.name].type != types.get(t.name, given.assignments[t.name].type)
        or (t.name in types and found[t.name].feedback != given.assignments[t.name].feedback)
    ]


def _by_name(
    given: Open, wrong: Sequence[ModelTensor], types: Mapping[str, QuantType]
) -> list[str]:
    """Return the lines of rules by name."""
    named = {t.name: types.get(t.name, given.assignments[t.name].type).name for t in wrong}
    lines: list[str] = []
    by_feedback: dict[Feedback, list[ModelTensor]] = {}
    for t in wrong:
        by_feedback.setdefault(_own_feedback(given, t.name), []).append(t)
    for feedback, tensors in by_feedback.items():
        for rule in by_name(tensors, named):
            lines += replace(rule, feedback=str(feedback)).lines()
    return lines
