"""What the page of a plan shows, whether of a plan or of a file that was made by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from dynquant.keys import Keys
from dynquant.plan.plan import Plan, TensorPlan, Totals


@dataclass(frozen=True)
class Picture(Totals):
    """Tensors with their types and places, and what decided them.

    model:      what people call it
    recipe:     its name; recipe_path, recipe_text: the file and what is in it, empty if not known
    imatrix:    name of the file; None without
    file_bytes: of all files; None where the model lacks a part of them
    refusals:   why it is not to be converted
    unweighed:  tensors whose encoder weighs all channels alike
    ignored:    stored tensors that are left out, with the reason
    version:    of the dynquant that planned it, or made it
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
    unweighed: Collection[str] = ()
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])


def picture_of(plan: Plan, file_bytes: int | None) -> Picture:
    """Return what the page shows of a plan."""
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
        unweighed=frozenset(plan.unweighed),
        ignored=plan.ignored,
    )


def model_name(keys: Keys, architecture: str) -> str:
    """Return what people call a model, its architecture if it has no name."""
    return text_of(keys, "general.name") or architecture


def text_of(keys: Keys, name: str) -> str | None:
    """Return the text of a key; None where there is none, or none in it."""
    key = keys.get(name)
    return key.value if key is not None and isinstance(key.value, str) and key.value else None
