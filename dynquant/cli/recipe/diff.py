"""`dynquant recipe diff`: what changes between two recipes or files, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import ImatrixOption, JsonOption, MlaOption

if TYPE_CHECKING:
    from dynquant.arch.base import Model
    from dynquant.plan.difference import Typed


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A recipe, or a GGUF file.")],
    after: Annotated[str, typer.Argument(metavar="B", help="A recipe, or a GGUF file.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="The model that recipes are applied to; not needed for two GGUF files.",
            show_default=False,
        ),
    ] = None,
    imatrix: ImatrixOption = None,
    json: JsonOption = False,
    mla: MlaOption = "split",
) -> None:
    """Show which tensors change their type from A to B, and the bytes that it costs."""
    from dynquant.arch.load import load_model
    from dynquant.errors import RecipeError
    from dynquant.report.changed import changed_json, changed_tables

    recipes = [side for side in (before, after) if not side.endswith(".gguf")]
    if recipes and model is None:
        raise RecipeError(f"{recipes[0]}: a recipe is compared on a model; name one after A and B")
    loaded = (
        load_model(model, mla=mla, needs_vocab=False) if model is not None and recipes else None
    )
    sides = [_tensors(side, loaded, imatrix is not None) for side in (before, after)]
    if json:
        console.write_json(changed_json(*sides))
    else:
        console.show(*changed_tables(before, after, *sides))


def _tensors(side: str, model: Model | None, has_imatrix: bool) -> tuple[Typed, ...]:
    from dynquant.checkpoint.gguf_shards import open_gguf
    from dynquant.plan.difference import typed_by, typed_in
    from dynquant.plan.resolve import resolve
    from dynquant.recipe.loader import load_recipe

    if side.endswith(".gguf"):
        return typed_in(open_gguf(Path(side)))
    assert model is not None, "a recipe comes with a model"
    recipe = load_recipe(side)
    given = has_imatrix or recipe.importance == "required"
    return typed_by(resolve(model, recipe, importance=given))
