"""The rungs of a ladder: a plan for each recipe, or for each size, of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynquant.arch.base import Model
from dynquant.arch.load import Mla
from dynquant.budget.comments import short_text
from dynquant.budget.sensitivity import read_sensitivity
from dynquant.budget.solve import Solved, asked_of, pose, solve_for
from dynquant.checkpoint.gguf_shards import NAME
from dynquant.checkpoint.hub import is_hub_name, parse_hub_name
from dynquant.errors import ConvertError, PlanError, Problems
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.inputs import Inputs, read_inputs
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.rules import Recipe
from dynquant.recipe.target import Target
from dynquant.recipe.values import size

RecipeGiven = str | Path | Mapping[str, Any] | Recipe


@dataclass(frozen=True)
class Rung:
    """A plan of a ladder.

    name:   of its recipe, or of its size; a part of the output's name
    solved: what its types cost, if it was made for a size
    """

    name: str
    plan: Plan
    solved: Solved | None = None


@dataclass(frozen=True)
class Reading:
    """How the inputs that all rungs share are read; as in `read_inputs`."""

    model: str | Path | Model
    imatrix: str | Path | Imatrix | None = None
    moments: str | Path | Moments | None = None
    pre: str | None = None
    mla: Mla | None = None
    leave_out: Sequence[str] = ()
    merge_adapter: Sequence[str | Path] = ()

    def inputs(self, recipe: RecipeGiven) -> Inputs:
        """Read them; raise DynquantError with the faults of all."""
        return read_inputs(
            self.model,
            recipe,
            self.imatrix,
            moments=self.moments,
            pre=self.pre,
            mla=self.mla,
            leave_out=self.leave_out,
            merge_adapter=self.merge_adapter,
        )


def rungs_of_recipes(
    reading: Reading, recipes: Sequence[RecipeGiven], options: Mapping[str, Any]
) -> list[Rung]:
    """Return a plan for each recipe.

    options: of `make_plan`: effort, allow_requantize, set_keys, split

    Raises DynquantError with the faults of all recipes and inputs, PlanError for recipes that leave
    types open.
    """
    problems = Problems()
    rules = [problems.attempt(lambda r=recipe: _loaded(r)) for recipe in recipes]
    known = [recipe for recipe in rules if recipe is not None]
    problems.add(
        *(
            f"{recipe.path}: leaves types open (choose), so that it needs a size; give sizes"
            " instead of recipes (--sizes with --recipe)"
            for recipe in known
            if recipe.has_choice
        )
    )
    inputs = problems.attempt(lambda: reading.inputs(known[0] if known else {"default": "Q8_0"}))
    fixed = [recipe for recipe in known if not recipe.has_choice]
    plans = [problems.attempt(lambda i=i: _plan(i, options)) for i in _each(inputs, fixed)]
    problems.raise_any(PlanError)
    return [Rung(r.name, p) for r, p in zip(fixed, plans, strict=True) if p is not None]


def rungs_of_sizes(
    reading: Reading,
    sizes: Sequence[tuple[str, Target]],
    recipe: RecipeGiven,
    options: Mapping[str, Any],
    *,
    threads: int,
    sensitivity: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rung]:
    """Return a plan for each size; what types do to tensors is measured once.

    sizes:    each with a name
    recipe:   one with `choose`
    progress: called with the tensors that are measured, and all

    Raises DynquantError with the faults of all inputs, PlanError if the rules leave nothing open or
    allow no file of one of the sizes.
    """
    problems = Problems()
    known = problems.attempt(lambda: read_sensitivity(sensitivity)) if sensitivity else None
    inputs = problems.attempt(lambda: reading.inputs(recipe))
    problems.raise_any()
    assert inputs is not None, "whatever is not read is a fault"
    targets = [asked_of(inputs, target) for _, target in sizes]
    smallest = min(targets, key=lambda t: t.size or t.bpw or t.fit or 0)
    problem = pose(
        inputs,
        target=smallest,
        threads=threads,
        known=known,
        known_as=str(sensitivity),
        progress=progress,
        **options,
    )
    solved = [problems.attempt(lambda t=target: solve_for(problem, t)) for target in targets]
    problems.raise_any(PlanError)
    return [
        Rung(name, found.plan, found)
        for (name, _), found in zip(sizes, solved, strict=True)
        if found is not None
    ]


def named_size(given: Target | str | int) -> tuple[str, Target]:
    """Return a size with the name that outputs get from it: as it is written, or `131GB`."""
    target = given if isinstance(given, Target) else Target(size(str(given)))
    return (given if isinstance(given, str) else short_text(target)), target


def output_of(pattern: str | Path, model: str | Path | Model, rung: Rung) -> Path:
    """Return the output of a rung: MODEL-RUNG.gguf in a folder, or a name with {} replaced.

    Raises ConvertError for a name that is neither a folder nor has one {}.
    """
    text = str(pattern)
    if Path(pattern).is_dir():
        return Path(pattern) / f"{stem_of(model)}-{rung.name}.gguf"
    if text.count("{}") == 1 and text.endswith(".gguf"):
        return Path(text.replace("{}", rung.name))
    raise ConvertError(
        f"{text}: is neither a folder nor a pattern such as model-{{}}.gguf; create the folder, or"
        " write {} where the recipe or the size belongs"
    )


def stem_of(model: str | Path | Model) -> str:
    """Return the name of a model for its outputs."""
    if isinstance(model, Model):
        return "model" if not model.files else _stem(model.files[0].parent.name)
    if is_hub_name(str(model)):
        hub = parse_hub_name(str(model))
        return _stem((hub.file or hub.repo).rpartition("/")[2])
    return _stem(Path(model).resolve().name)


def _stem(name: str) -> str:
    shard = NAME.fullmatch(name)
    return shard["prefix"] if shard else name.removesuffix(".gguf")


def _loaded(recipe: RecipeGiven) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _each(inputs: Inputs | None, recipes: Sequence[Recipe]) -> list[Inputs]:
    return [replace(inputs, recipe=recipe) for recipe in recipes] if inputs else []


def _plan(inputs: Inputs, options: Mapping[str, Any]) -> Plan:
    return make_plan(
        inputs.model,
        inputs.recipe,
        imatrix=inputs.imatrix,
        moments=inputs.moments,
        grids=inputs.grids,
        **options,
    )
