"""Applies recipes to models without making a plan, to check, explain, compare and export them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dynquant.arch.base import Model
from dynquant.arch.load import Mla, load_model
from dynquant.checkpoint.gguf_shards import open_gguf
from dynquant.checkpoint.hub import is_hub_name
from dynquant.errors import Problems, RecipeError
from dynquant.figures import counted
from dynquant.importance.imatrix import read_imatrix
from dynquant.interchange.tensor_types import tensor_types
from dynquant.measure.grids import find_grids
from dynquant.plan.difference import Typed, typed_by, typed_in
from dynquant.plan.resolve import Resolved, resolve
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.rules import Recipe


def apply_recipe(
    recipe: Recipe, model: Model, *, has_imatrix: bool, strict: bool = False
) -> Resolved:
    """Apply a recipe to a model; a required imatrix counts as given, an ignored one does not.

    strict: raise RecipeError if there are warnings

    Raises RecipeError and PlanError as `resolve` does, CheckpointError if the recipe keeps types
    and rows of the model cannot be read.
    """
    importance = recipe.importance == "required" or (has_imatrix and recipe.importance != "ignored")
    grids = find_grids(model.tensors, all_sources=True) if recipe.has_keep else {}
    resolved = resolve(model, recipe, importance=importance, grids=grids)
    if strict:
        RecipeError.raise_any(resolved.warnings)
    return resolved


def typed_sides(
    sides: Sequence[str],
    model: str | None,
    imatrix: Path | None = None,
    *,
    mla: Mla,
    leave_out: Sequence[str] = (),
) -> tuple[tuple[Typed, ...], ...]:
    """Return the tensors of each side: of a GGUF file, or of a model after applying a recipe.

    model, imatrix: used if a side is a recipe; the model is required then
    leave_out: as in `load_model`

    Raises DynquantError with the faults of all of them.
    """
    problems = Problems()
    files = {s: problems.attempt(partial(open_gguf, Path(s))) for s in sides if _is_gguf(s)}
    recipes = {s: problems.attempt(partial(load_recipe, s)) for s in sides if not _is_gguf(s)}
    means = problems.attempt(partial(read_imatrix, imatrix)) if imatrix else None
    loaded = None
    if recipes and model is None:
        where = next(iter(recipes))
        problems.add(f"{where}: comparing a recipe requires a model; add MODEL after A and B")
    elif recipes and model is not None:
        if is_hub_name(model):
            problems.raise_any()
        loaded = problems.attempt(
            partial(load_model, model, mla=mla, needs_vocab=False, leave_out=leave_out)
        )
    problems.raise_any()

    def typed(side: str) -> tuple[Typed, ...]:
        if file := files.get(side):
            return typed_in(file)
        recipe = recipes[side]
        assert recipe is not None and loaded is not None, "whatever is not read is a problem"
        resolved = apply_recipe(recipe, loaded, has_imatrix=means is not None)
        refuse_open(resolved, recipe)
        return typed_by(resolved)

    found = tuple(map(typed, sides))
    if files and recipes:  # a recipe does not say whether there are moments, as a file does
        return tuple(tuple(replace(t, feedback="") for t in side) for side in found)
    return found


def _is_gguf(side: str) -> bool:
    return side.endswith(".gguf")


def refuse_open(resolved: Resolved, recipe: Recipe) -> None:
    """Raise RecipeError for a recipe that leaves types to the size of the file."""
    if n := len(resolved.assigned.open):
        raise RecipeError(
            f"{recipe.path}: leaves the types of {counted(n, 'tensor')} to the size of the file"
            " (`choose`); write the recipe for a size first (`dynquant solve`)"
        )


def exported_tensor_types(resolved: Resolved, recipe: Recipe) -> str:
    """Return the text for llama-quantize's --tensor-type-file, as `tensor_types` does.

    Raises RecipeError for a recipe that leaves types open.
    """
    refuse_open(resolved, recipe)
    types = {name: given.type for name, given in resolved.assigned.assignments.items()}
    return tensor_types(resolved.model.tensors, types)
