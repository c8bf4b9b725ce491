"""What a plan is made of, read together: all that is wrong with it is told at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from dynquant.errors import DynquantError

if TYPE_CHECKING:
    from dynquant.arch.base import Model
    from dynquant.importance.imatrix import Imatrix
    from dynquant.recipe.rules import Recipe

T = TypeVar("T")


def read_inputs(
    model: str,
    recipe: str,
    imatrix: Path | None,
    *,
    pre: str | None,
    mla: Literal["split", "merged"],
    needs_vocab: bool = True,
) -> tuple[Model, Recipe, Imatrix | None]:
    """Read recipe, imatrix and model, in this order; raise DynquantError with all their faults.

    A model of the Hub is fetched only if the others are right: that may take hours.
    """
    from dynquant.arch.load import load_model
    from dynquant.importance.imatrix import read_imatrix
    from dynquant.recipe.loader import load_recipe

    problems: list[str] = []
    rules = _tried(lambda: load_recipe(recipe), problems)
    means = _tried(lambda: read_imatrix(imatrix), problems) if imatrix else None
    if model.startswith("hf://"):
        DynquantError.raise_any(problems)
    loaded = _tried(lambda: load_model(model, pre=pre, mla=mla, needs_vocab=needs_vocab), problems)
    DynquantError.raise_any(problems)
    assert loaded is not None and rules is not None, "what is not read is a problem"
    return loaded, rules, means


def _tried(read: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return read()
    except DynquantError as e:
        problems += e.messages
        return None
