"""`dynquant sensitivity`: what types do to the tensors of a model, and what that costs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.measuring import (
    ReferenceOption,
    TextOption,
    TokensOption,
    check_texts,
    settings_of,
)
from dynquant.cli.options import (
    EffortOption,
    ImatrixOption,
    LeaveOutOption,
    ModelArgument,
    MomentsOption,
    PlanMlaOption,
    PreOption,
    QuietOption,
    RequantizeOption,
    ThreadsOption,
    recipe_names,
)
from dynquant.cli.targets import (
    DEFAULT_RECIPE,
    Asked,
    ContextOption,
    FitOption,
    TargetBpwOption,
    TargetSizeOption,
)


def sensitivity(
    model: ModelArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.json",
            help="The file to write, for --sensitivity; one of the same model is completed.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            metavar="R",
            help="A recipe with `choose`: the types that are measured.",
            autocompletion=recipe_names,
        ),
    ] = DEFAULT_RECIPE,
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Also measure by llama.cpp what errors cost: groups of tensors are changed in turn"
            " around the recipe that is solved for a size. Needs --text and the extra `eval`.",
        ),
    ] = False,
    target_size: TargetSizeOption = None,
    target_bpw: TargetBpwOption = None,
    fit: FitOption = None,
    context: ContextOption = None,
    text: TextOption = None,
    tokens: TokensOption = 32_768,
    reference: ReferenceOption = None,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    threads: ThreadsOption = None,
    pre: PreOption = None,
    mla: PlanMlaOption = None,
    leave_out: LeaveOutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start over if OUT.json is of other inputs.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Measure what each type does to each tensor, for `solve --sensitivity`.

    Rows of each tensor are encoded with every type that it may have. The file makes solving for
    another size a matter of seconds.
    """
    asked = Asked(target_size, target_bpw, fit, context)
    asked.check()
    check_texts(text, measure, "--measure")
    from dynquant.budget.errors import WEIGHTS
    from dynquant.budget.sensitivity import (
        Sensitivity,
        read_sensitivity,
        sensitivity_of,
        write_sensitivity,
    )
    from dynquant.budget.solve import pose
    from dynquant.cli.steps import counting, successive
    from dynquant.cli.text_files import check_text
    from dynquant.conversion.write import default_threads
    from dynquant.errors import PlanError
    from dynquant.inputs import read_inputs

    check_text(out, force=True)
    known: Sensitivity | None = None
    if out.exists() and not force:
        known = read_sensitivity(out)
    inputs = read_inputs(
        model, recipe, imatrix, moments=moments, pre=pre, mla=mla, leave_out=leave_out or ()
    )
    target = asked.target().over(inputs.recipe.target)
    if measure and not target.is_given:
        raise PlanError("--measure changes groups around a solution: give --target-size SIZE")
    n_threads = threads or default_threads()
    with counting("measuring the types", quiet=quiet) as report:
        problem = pose(
            inputs,
            target=target,
            effort=effort,
            allow_requantize=allow_requantize,
            threads=n_threads,
            known=known and known.model_copy(update={"measured": None}),
            known_as=str(out),
            progress=report,
        )
    found = known or sensitivity_of(problem.plan, problem.errors, WEIGHTS)
    write_sensitivity(found, out)
    if measure:
        from tempfile import TemporaryDirectory

        from dynquant.budget.measure import measure_factors

        settings = settings_of(text, tokens, threads)
        try:
            with (
                TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder,
                successive(lambda step: counting(step, quiet=quiet)) as progress,
            ):
                measure_factors(
                    problem,
                    target,
                    found,
                    settings,
                    reference or model,
                    Path(folder),
                    progress=progress,
                    say=lambda line: console.talk(line, quiet=quiet),
                    save=lambda one: write_sensitivity(one, out),
                )
        except (KeyboardInterrupt, SystemExit):
            console.talk(f"interrupted; the same command completes {out}")
            raise
    console.talk(f"{out}: written", quiet=quiet)
