"""The options for the projector file (mmproj), and the plan that they give."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from dynquant.cli.options import named_file, recipe_names

if TYPE_CHECKING:
    from dynquant.keys import KeyValue
    from dynquant.plan.plan import Plan
    from dynquant.quants.search import Effort

DEFAULT = "F16"
"""The type of a projector's matrices, unless another recipe is named: what most people publish."""

_OPTION = "--mmproj"
_UNSAFE = re.compile(r"[^\w.]+", re.ASCII)

MmprojOption = Annotated[
    str | None,
    typer.Option(
        _OPTION,
        metavar="[R]",
        help="Write the projector, too, with which llama.cpp sees and hears: mmproj-NAME-R.gguf"
        f" beside the output. R is a type or a recipe, {DEFAULT} if it is left out.",
        show_default=False,
        autocompletion=recipe_names,
    ),
]
MmprojOutOption = Annotated[
    Path | None,
    typer.Option(
        "--mmproj-out",
        metavar="FILE.gguf",
        help="Where to write the projector, instead of beside the output; implies --mmproj.",
        show_default=False,
        callback=named_file,
    ),
]
OnlyMmprojOption = Annotated[
    bool,
    typer.Option("--only-mmproj", help="Write the projector to OUT.gguf, and no language model."),
]


class WithMmproj(TyperCommand):
    """A command whose option --mmproj may have no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments, after completing --mmproj."""
        for one, following in pairwise(args):
            if one == _OPTION and (Path(following).is_dir() or following.startswith("hf://")):
                raise typer.BadParameter(
                    f"takes {following!r} as its recipe; write {_OPTION}={DEFAULT}, or put it last",
                    ctx,
                    param_hint=_OPTION,
                )
        return super().parse_args(ctx, completed(args))


def completed(args: Sequence[str]) -> list[str]:
    """Return arguments with a value for --mmproj: the next argument, unless it is an option."""
    end = list(args).index("--") if "--" in args else len(args)
    return [
        f"{_OPTION}={DEFAULT}"
        if one == _OPTION and i < end and (i + 1 >= end or args[i + 1].startswith("-"))
        else one
        for i, one in enumerate(args)
    ]


@dataclass(frozen=True)
class Projecting:
    """What was asked for: a projector of this recipe, with the language model or alone."""

    model: str
    recipe: str
    effort: Effort | None = None
    set_keys: dict[str, KeyValue | str] | None = None
    out: Path | None = None
    fetch: Literal["download", "shards", "stream"] = "download"

    def make(self) -> Plan:
        """Read the projector and its recipe, and return the plan."""
        from dynquant.arch.load_projector import load_projector
        from dynquant.errors import Problems
        from dynquant.inputs import read_inputs
        from dynquant.plan.make import make_plan
        from dynquant.recipe.loader import load_recipe

        problems = Problems()
        recipe = problems.attempt(lambda: load_recipe(self.recipe))
        model = problems.attempt(lambda: load_projector(self.model, fetch=self.fetch))
        problems.raise_any()
        assert recipe is not None and model is not None, "whatever is not read is a fault"
        inputs = read_inputs(model, recipe)
        return make_plan(
            inputs.model,
            inputs.recipe,
            effort=self.effort,
            set_keys=self.set_keys,
            grids=inputs.grids,
        )

    def path(self, out: Path, plan: Plan) -> Path:
        """Return where the projector is written: as asked, else beside OUT.gguf."""
        if self.out is not None:
            return self.out
        from dynquant.quants.table import ALL

        key = plan.keys.get("general.name")
        name = _UNSAFE.sub("-", str(key.value) if key else "model").strip("-") or "model"
        kind = plan.recipe.name.upper() if plan.recipe.name.upper() in ALL else plan.recipe.name
        return out.with_name(f"mmproj-{name}-{_UNSAFE.sub('-', kind)}.gguf")


def uncounted(fit: str | None, projector: Plan | None) -> Iterator[str]:
    """Yield a warning if a limit of memory does not count the projector beside the model.

    fit: the limit, as --fit has it
    """
    from dynquant.conversion.layout import lay_out
    from dynquant.figures import size_text

    if fit is not None and projector is not None:
        size = size_text(lay_out(projector).n_bytes)
        yield f"--fit counts the language model; llama.cpp also loads the projector, {size}"


def without_projector(plan: Plan, projector: Plan | None) -> tuple[str, ...]:
    """Return a plan's warnings without those about parts that a projector file holds.

    projector: its plan; None if none is written
    """
    from dynquant.arch.wrapped import WRITTEN

    return tuple(w for w in plan.warnings if projector is None or not w.endswith(WRITTEN))
