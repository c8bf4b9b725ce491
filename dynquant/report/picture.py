"""The contents of the page of a plan, taken from a plan or from a finished file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from dynquant.keys import Keys
from dynquant.plan.plan import Plan, TensorPlan, Totals
from dynquant.report.totals import grid_lines


@dataclass(frozen=True)
class Picture(Totals):
    """Tensors with their types and offsets, and the rules that chose them.

    model:       the model's name
    recipe:      the recipe's name
    recipe_path, recipe_text: the recipe's file and contents; empty if not known
    imatrix:     the imatrix's file name; None without imatrix
    moments:     the name of the file of second moments; None without error feedback
    file_bytes:  size of all files; None if it is not known
    refusals:    reasons why the plan cannot be converted
    unweighted:  tensors that are quantized without importance
    ignored:     stored tensors that are left out, with the reason
    grids:       a line for each grid that tensors of stored floats lie on
    version:     the version of dynquant that made the plan or the file
    """

    model: str
    architecture: str
    recipe: str
    description: str
    recipe_path: str
    recipe_text: str
    effort: str
    imatrix: str | None
    tensors: tuple[TensorPlan, ...]
    n_shards: int
    file_bytes: int | None
    version: str
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    unweighted: Collection[str] = ()
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])
    grids: tuple[str, ...] = ()
    moments: str | None = None


def picture_of(plan: Plan, file_bytes: int | None) -> Picture:
    """Return the contents of the page of a plan."""
    return Picture(
        model=model_name(plan.keys, plan.architecture),
        architecture=plan.architecture,
        recipe=plan.recipe.name,
        description=plan.recipe.description,
        recipe_path=plan.recipe.path,
        recipe_text=plan.recipe.text,
        effort=plan.effort,
        imatrix=plan.imatrix.path.name if plan.imatrix else None,
        tensors=plan.tensors,
        n_shards=len(plan.shards),
        file_bytes=file_bytes,
        version=str(plan.keys["dynquant.version"].value),
        warnings=plan.warnings,
        refusals=(*plan.missing, *plan.refusals),
        unweighted=frozenset(plan.unweighted),
        ignored=plan.ignored,
        grids=tuple(grid_lines(plan)),
        moments=plan.moments.path.name if plan.moments else None,
    )


def model_name(keys: Keys, architecture: str) -> str:
    """Return a model's name, or its architecture if it has none."""
    return text_of(keys, "general.name") or architecture


def text_of(keys: Keys, name: str) -> str | None:
    """Return the text of a key; None if there is no such key, or it is empty or not a text."""
    key = keys.get(name)
    return key.value if key is not None and isinstance(key.value, str) and key.value else None
