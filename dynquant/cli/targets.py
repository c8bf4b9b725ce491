"""The options that ask for a size, and the recipe that is solved for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import size_of

if TYPE_CHECKING:
    from dynquant.budget.solve import Problem
    from dynquant.inputs import Inputs
    from dynquant.recipe.target import Target

TargetSizeOption = Annotated[
    str | None,
    typer.Option(
        "--target-size",
        metavar="SIZE",
        help="Bytes of the output, such as 131GB or 24GiB: rules with `choose` get the types that"
        " fill it best. Without --recipe, all matrices do.",
        show_default=False,
    ),
]
TargetBpwOption = Annotated[
    float | None,
    typer.Option(
        "--target-bpw",
        metavar="BITS",
        help="Mean bits per weight instead of a size.",
        show_default=False,
        min=0.1,
        max=32,
    ),
]
FitOption = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="MEMORY",
        help="Memory that llama.cpp may take, such as 24GiB, for weights, the cache of a context,"
        " and buffers, instead of a size.",
        show_default=False,
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        help="Tokens of the context that --fit has room for. Default: 8192.",
        show_default=False,
        min=1,
    ),
]

SensitivityOption = Annotated[
    Path | None,
    typer.Option(
        "--sensitivity",
        metavar="FILE",
        help="What `dynquant sensitivity` measured of the model, for a target; default: measure the"
        " errors again, and take what they cost from trained models.",
        show_default=False,
    ),
]

DEFAULT_RECIPE = "budget"


@dataclass(frozen=True)
class Asked:
    """The options, as the command line has them; None where they are not given."""

    size: str | None = None
    bpw: float | None = None
    fit: str | None = None
    context: int | None = None
    sensitivity: Path | None = None

    @property
    def is_given(self) -> bool:
        """Whether a size is asked for."""
        return (self.size, self.bpw, self.fit) != (None, None, None)

    def check(self) -> None:
        """Raise BadParameter for options that are not valid together, or alone."""
        size_of(self.size, "--target-size")
        size_of(self.fit, "--fit")
        named = {"--target-size": self.size, "--target-bpw": self.bpw, "--fit": self.fit}
        given = [name for name, value in named.items() if value is not None]
        if len(given) > 1:
            raise typer.BadParameter(f"give one of {' and '.join(given)}")
        if self.context is not None and given and given != ["--fit"]:
            raise typer.BadParameter("--context is for --fit; leave it out")

    @property
    def words(self) -> tuple[str, ...]:
        """The options as a command line has them, without --sensitivity."""
        given = {
            "--target-size": self.size,
            "--target-bpw": self.bpw,
            "--fit": self.fit,
            "--context": self.context,
        }
        return tuple(str(word) for name, v in given.items() if v is not None for word in (name, v))

    def target(self) -> Target:
        """Return what the options say."""
        from dynquant.recipe.target import Target

        return Target(
            size_of(self.size, "--target-size"), self.bpw, size_of(self.fit, "--fit"), self.context
        )


NOTHING_ASKED = Asked()


def posed(
    inputs: Inputs,
    asked: Asked,
    *,
    threads: int | None = None,
    quiet: bool = False,
    **options: object,
) -> tuple[Problem, Target]:
    """Measure the types for the size that options or the recipe ask for, and show the progress.

    options: of `make_plan`

    Raises PlanError if the recipe leaves nothing open, or if no size is asked for.
    """
    from typing import Any, cast

    from dynquant.budget.sensitivity import read_sensitivity
    from dynquant.budget.solve import asked_of, pose
    from dynquant.cli.steps import counting
    from dynquant.conversion.write import default_threads

    target = asked_of(inputs, asked.target())
    known = read_sensitivity(asked.sensitivity) if asked.sensitivity else None
    if known and known.measured:
        console.talk(f"{asked.sensitivity}: {known.measured.text}", quiet=quiet)
    with counting("measuring the types", quiet=quiet) as progress:
        problem = pose(
            inputs,
            target=target,
            threads=threads or default_threads(),
            progress=progress,
            known=known,
            known_as=str(asked.sensitivity),
            **cast(dict[str, Any], options),
        )
    return problem, target
