"""A recipe applied to a model: which tensors the file has, and the type of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from dynquant.arch.base import Model, ModelTensor
from dynquant.errors import PlanError
from dynquant.measure.grids import OnGrid
from dynquant.name_lists import grouped
from dynquant.plan.settle_prediction import settle_prediction
from dynquant.recipe.assignment import Assigned
from dynquant.recipe.facts import Facts, facts_of
from dynquant.recipe.match import assign
from dynquant.recipe.rules import Recipe


@dataclass(frozen=True)
class Resolved:
    """A recipe applied to a model.

    model:    with the tensors of the file; tensors that keep their type as stored blocks
    assigned: the type of each
    facts:    the facts that conditions of rules were compared with
    warnings: about the recipe
    """

    model: Model
    assigned: Assigned
    facts: Facts
    warnings: tuple[str, ...]


def resolve(
    model: Model,
    recipe: Recipe,
    *,
    importance: bool,
    grids: Mapping[str, OnGrid] = MappingProxyType({}),
) -> Resolved:
    """Apply a recipe to a model.

    importance: whether there is an imatrix that the recipe uses
    grids:      the grids that tensors of floats lie on, by name

    Raises RecipeError if the recipe does not fit the model, PlanError if it drops only a part of
    the layers that predict further ahead.
    """
    facts = facts_of(model, importance=importance)
    settled = settle_prediction(model, keep=recipe.keeps_prediction)
    there = {t.name for t in settled.tensors}
    absent = [t for t in model.tensors if t.name not in there]
    types = {name: grid.type for name, grid in grids.items()}
    assigned = assign(recipe, settled.tensors, facts, absent, types)
    left, warnings = _leave_out(settled, assigned.dropped, model)
    blocks = _keep_blocks(left, assigned)
    if blocks is not left:
        assigned = assign(recipe, blocks.tensors, facts, absent, types)
    if recipe.intended and model.architecture not in recipe.intended:
        meant = ", ".join(recipe.intended)
        other = f"{recipe.path}: is meant for {meant}, and the model is {model.architecture}"
        warnings = (other, *warnings)
    return Resolved(blocks, assigned, facts, (*warnings, *assigned.warnings))


def _leave_out(
    model: Model, dropped: Mapping[str, str], whole: Model
) -> tuple[Model, tuple[str, ...]]:
    """Return a model without some tensors, and the warnings about it.

    dropped: names of tensors, with the place of the rule that drops them
    whole:   the model before its prediction layers were settled

    Raises PlanError if prediction layers would lose only some of their tensors: a file's keys count
    these layers, and runtimes expect all of their tensors.
    """
    if not dropped:
        return model, ()
    ahead = model.prediction.layers if model.prediction else range(0)
    theirs = [t.name for t in model.tensors if t.parts.layer in ahead]
    gone = [name for name in theirs if name in dropped]
    if gone and len(gone) < len(theirs):
        left = grouped(name for name in theirs if name not in dropped)
        raise PlanError(
            f"{dropped[gone[0]]}: drops only a part of the layers that predict further ahead; drop"
            f" all of them (role: mtp) or none; remaining: {', '.join(left)}"
        )
    if gone:
        model = settle_prediction(whole, keep=False, reason=f"dropped by {dropped[gone[0]]}")
    others = {t.name: dropped[t.name] for t in model.tensors if t.name in dropped}
    if not others:
        return model, ()
    warning = (
        f"{next(iter(others.values()))}: drops {', '.join(grouped(others))}; llama.cpp does not"
        " load a file without a tensor of its architecture"
    )
    return (
        replace(
            model,
            tensors=tuple(t for t in model.tensors if t.name not in others),
            ignored=model.ignored | {n: f"dropped by {where}" for n, where in others.items()},
        ),
        (warning,),
    )


def _keep_blocks(model: Model, assigned: Assigned) -> Model:
    """Return a model in which tensors that keep their type are the stored blocks.

    Each is followed by its factor, `NAME.scale`. Returns the same model if there are no such
    tensors.
    """
    tensors = tuple(_settled(model, assigned))
    return model if len(tensors) == len(model.tensors) else replace(model, tensors=tensors)


def _settled(model: Model, assigned: Assigned) -> Iterator[ModelTensor]:
    for tensor in model.tensors:
        chosen = assigned.assignments.get(tensor.name)
        kept = tensor.kept
        blocks = kept.of_type(chosen.type.name) if kept and chosen else None
        if kept is None or blocks is None:
            yield tensor
            continue
        yield ModelTensor(tensor.name, blocks, stored_names=tensor.stored_names)
        yield ModelTensor(tensor.name.removesuffix("weight") + "scale", kept.factor)
