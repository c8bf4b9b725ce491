"""Finds the rule of a recipe that decides the type of each tensor of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dynquant.arch.base import ModelTensor
from dynquant.errors import RecipeError
from dynquant.quants.table import QuantType
from dynquant.recipe.assignment import BUILT_IN, Assigned, Assignment
from dynquant.recipe.diagnostics import Findings
from dynquant.recipe.facts import Facts, facts_of_tensors
from dynquant.recipe.feedback import UNSET, Feedback
from dynquant.recipe.for_readers import AskedReaders
from dynquant.recipe.protection import Protection, protection
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.selection import Selection


def assign(
    recipe: Recipe,
    tensors: Sequence[ModelTensor],
    facts: Facts | None = None,
    absent: Sequence[ModelTensor] = (),
    grids: Mapping[str, QuantType] = MappingProxyType({}),
) -> Assigned:
    """Give every tensor of a model its type: by rule, built-in protection or default.

    facts:  of the model; None derives them from the tensors
    absent: tensors that the file leaves out in any case; a rule that drops them is not an error
    grids:  the types whose grids tensors of floats lie on, by name; `keep` gives them these

    Raises RecipeError with all rules that apply to no tensor and are not optional, all rows that
    no block of a rule's type or of the fallback divides, and all types that the recipe's readers
    do not read.
    """
    facts = facts or facts_of_tensors(tensors)
    selections = [Selection(rule, facts) for rule in recipe.rules]
    found = Findings(recipe, selections, facts, tensors)
    asked = AskedReaders(recipe, facts.architecture)
    assignments: dict[str, Assignment] = {}
    dropped: dict[str, str] = {}
    for tensor in tensors:
        guard = protection(tensor, facts.architecture)
        rule = next((s.rule for s in selections if takes(s, tensor, guard)), None)
        if guard and rule is None:
            reason = BUILT_IN + guard.reason
            assignments[tensor.name] = Assignment(guard.type, reason, feedback=recipe.feedback)
            asked.kept(tensor, guard.type)
            continue
        found.decided(tensor, rule, guard)
        if rule and rule.action == "drop":
            dropped[tensor.name] = rule.where
            continue
        if rule and rule.choice:
            types = asked.readable(rule.choice.of(tensor.n_per_row, importance=facts.importance))
            if not types:
                found.without_types(tensor)
                continue
            assignments[tensor.name] = Assignment(
                types[0],
                rule.where,
                note=rule.note,
                feedback=_feedback(recipe, rule),
                choice=types,
            )
            continue
        grid = grids.get(tensor.name) if rule and rule.action == "keep" else None
        wanted = grid or _wanted(recipe, rule, tensor)
        asked.given(tensor, rule, wanted)
        tried = (wanted, *_fallback(recipe, rule, wanted))
        fits = [t for t in tried if not tensor.n_per_row % t.block_size]
        if not fits:
            found.refused(tensor, wanted)
        taken = asked.fallback(wanted, fits, tensor.n_per_row) if fits else wanted
        assignments[tensor.name] = Assignment(
            taken,
            rule.where if rule else where_default(recipe),
            None if taken is wanted else wanted,
            rule.note if rule else "",
            on_grid=grid is not None,
            feedback=_feedback(recipe, rule),
        )
    errors, warnings = found.report(assignments, absent)
    RecipeError.raise_any((*errors, *asked.errors()))
    return Assigned(assignments, (*warnings, *asked.warnings()), dropped)


def takes(selection: Selection, tensor: ModelTensor, guard: Protection | None) -> bool:
    """Whether a rule decides a tensor if no earlier one does; guard: the tensor's protection."""
    return may_take(selection.rule, guard) and selection.selects(tensor)


def may_take(rule: Rule, guard: Protection | None) -> bool:
    """Whether a tensor's protection permits the rule; every rule may drop a tensor."""
    if guard is None or rule.action == "drop":
        return True
    return rule.override and not guard.fixed


def where_default(recipe: Recipe) -> str:
    """Return the place of a recipe's default, such as `recipes/small.yaml:9 default`."""
    return f"{recipe.default_place.path}:{recipe.default_place.line} default"


def _feedback(recipe: Recipe, rule: Rule | None) -> Feedback:
    """Return what the rule that gives a type says about error feedback, or else the recipe."""
    if rule is None or rule.feedback is UNSET:
        return recipe.feedback
    return Feedback.first_of((rule.feedback, recipe.feedback))


def _fallback(recipe: Recipe, rule: Rule | None, wanted: QuantType) -> tuple[QuantType, ...]:
    """Return the types to try if the block of a rule's type does not divide the rows."""
    if rule and rule.fallback is not None:
        return rule.fallback
    return recipe.fallback.of(wanted)


def _wanted(recipe: Recipe, rule: Rule | None, tensor: ModelTensor) -> QuantType:
    """Return the type that a rule gives a tensor, before the fallback."""
    if rule is None:
        return recipe.default
    if rule.type is not None:
        return rule.type
    return tensor.kept.blocks.stored if tensor.kept else tensor.source.stored
