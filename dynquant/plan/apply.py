"""Applies recipes to models without making a plan, to check, explain, compare and export them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynquant.arch.base import Model
from dynquant.arch.load import Mla, load_model
from dynquant.checkpoint.gguf_shards import open_gguf
from dynquant.errors import RecipeError
from dynquant.interchange.tensor_types import tensor_types
from dynquant.plan.difference import Typed, typed_by, typed_in
from dynquant.plan.resolve import Resolved, resolve
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.rules import Recipe


def apply_recipe(
    recipe: Recipe, model: Model, *, has_imatrix: bool, strict: bool = False
) -> Resolved:
    """Apply a recipe to a model; a required imatrix counts as given, an ignored one does not.

    strict: raise RecipeError if there are warnings

    Raises RecipeError and PlanError as `resolve` does.
    """
    importance = recipe.importance == "required" or (has_imatrix and recipe.importance != "ignored")
    resolved = resolve(model, recipe, importance=importance)
    if strict:
        RecipeError.raise_any(resolved.warnings)
    return resolved


def typed_sides(
    sides: Sequence[str], model: str | None, *, has_imatrix: bool, mla: Mla
) -> tuple[tuple[Typed, ...], ...]:
    """Return the tensors of each side: of a GGUF file, or of a model after applying a recipe.

    model: needed if a side is a recipe; else it is not read

    Raises DynquantError if a side or the model cannot be read, RecipeError if the model is missing.
    """
    recipes = {side: load_recipe(side) for side in sides if not side.endswith(".gguf")}
    if not recipes:
        return tuple(typed_in(open_gguf(Path(side))) for side in sides)
    if model is None:
        raise RecipeError(
            f"{next(iter(recipes))}: comparing a recipe requires a model; add MODEL after A and B"
        )
    loaded = load_model(model, mla=mla, needs_vocab=False)
    return tuple(
        typed_by(apply_recipe(recipes[side], loaded, has_imatrix=has_imatrix))
        if side in recipes
        else typed_in(open_gguf(Path(side)))
        for side in sides
    )


def exported_tensor_types(resolved: Resolved) -> str:
    """Return the text for llama-quantize's --tensor-type-file, as `tensor_types` does."""
    types = {name: given.type for name, given in resolved.assigned.assignments.items()}
    return tensor_types(resolved.model.tensors, types)
