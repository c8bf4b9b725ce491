"""A recipe applied to a model: which tensors the file has, and the type of each."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.arch.base import Model
from dynquant.plan.drops import leave_out
from dynquant.plan.kept import keep_blocks
from dynquant.plan.prediction import settle_prediction
from dynquant.recipe.assignment import Assigned
from dynquant.recipe.facts import Facts, facts_of
from dynquant.recipe.match import assign
from dynquant.recipe.rules import Recipe


@dataclass(frozen=True)
class Resolved:
    """A recipe applied to a model.

    model:    with the tensors that the file has; blocks that it keeps as they are stored
    assigned: the type of each
    facts:    what the conditions of rules were asked of
    warnings: all that the user should hear of the recipe
    """

    model: Model
    assigned: Assigned
    facts: Facts
    warnings: tuple[str, ...]


def resolve(model: Model, recipe: Recipe, *, importance: bool) -> Resolved:
    """Apply a recipe to a model; importance: whether there is an imatrix that it makes use of.

    Raises RecipeError if the recipe does not fit the model, PlanError where it drops a part of what
    belongs together.
    """
    facts = facts_of(model, importance=importance)
    settled = settle_prediction(model, keep=recipe.keeps_prediction)
    there = {t.name for t in settled.tensors}
    absent = [t for t in model.tensors if t.name not in there]
    assigned = assign(recipe, settled.tensors, facts, absent)
    left, warnings = leave_out(settled, assigned.dropped, model)
    blocks = keep_blocks(left, assigned)
    if blocks is not left:
        assigned = assign(recipe, blocks.tensors, facts, absent)
    if recipe.intended and model.architecture not in recipe.intended:
        meant = ", ".join(recipe.intended)
        other = f"{recipe.path}: is meant for {meant}, and the model is {model.architecture}"
        warnings = (other, *warnings)
    return Resolved(blocks, assigned, facts, (*warnings, *assigned.warnings))
