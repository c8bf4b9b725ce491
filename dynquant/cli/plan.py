"""`dynquant plan`: what a conversion would write, without writing it."""

from __future__ import annotations

from dynquant.cli import console
from dynquant.cli.options import (
    EffortOption,
    ImatrixOption,
    JsonOption,
    MlaOption,
    ModelArgument,
    PreOption,
    RecipeOption,
    RequantizeOption,
    SetOption,
    settings,
)


def plan(
    model: ModelArgument,
    recipe: RecipeOption,
    imatrix: ImatrixOption = None,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    json: JsonOption = False,
    set_keys: SetOption = None,
    pre: PreOption = None,
    mla: MlaOption = "split",
) -> None:
    """Print the type, size and place that a recipe gives each tensor."""
    wanted = settings(set_keys)
    from dynquant.arch.load import load_model
    from dynquant.conversion.layout import lay_out
    from dynquant.importance.imatrix import read_imatrix
    from dynquant.plan.plan import make_plan, plan_json
    from dynquant.recipe.language import load_recipe
    from dynquant.report.tables import plan_tables

    made = make_plan(
        load_model(model, pre=pre, mla=mla, needs_vocab=False),
        load_recipe(recipe),
        imatrix=read_imatrix(imatrix) if imatrix else None,
        effort=effort,
        allow_requantize=allow_requantize,
        set_keys=wanted,
    )
    for warning in made.warnings:
        console.talk(f"warning: {warning}")
    for lack in made.lacks:
        console.talk(f"warning: {lack}; until then no file can be written, nor its size be known")
    file_bytes = None if made.lacks else lay_out(made).file_bytes
    if json:
        console.write_json(plan_json(made) | {"file_bytes": file_bytes})
    else:
        console.show(plan_tables(made, file_bytes))
