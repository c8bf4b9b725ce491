"""`dynquant solve`: the best recipe for a size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    JsonOption,
    LeaveOutOption,
    MergeAdapterOption,
    ModelArgument,
    MomentsOption,
    PlanMlaOption,
    PreOption,
    QuietOption,
    RequantizeOption,
    SplitSizeOption,
    SplitTensorsOption,
    ThreadsOption,
    recipe_names,
    split_of,
)
from dynquant.cli.targets import (
    DEFAULT_RECIPE,
    Asked,
    ContextOption,
    FitOption,
    SensitivityOption,
    TargetBpwOption,
    TargetSizeOption,
    posed,
)
from dynquant.cli.text_files import ForceOption

if TYPE_CHECKING:
    from dynquant.budget.solve import Problem, Solved
    from dynquant.evaluate.settings import Settings
    from dynquant.recipe.target import Target


def solve(
    model: ModelArgument,
    target_size: TargetSizeOption = None,
    target_bpw: TargetBpwOption = None,
    fit: FitOption = None,
    context: ContextOption = None,
    sensitivity: SensitivityOption = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            metavar="R",
            help="A recipe with `choose`: its other rules hold.",
            autocompletion=recipe_names,
        ),
    ] = DEFAULT_RECIPE,
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="RECIPE.yaml",
            help="The recipe to write; default: print it, and no table.",
            show_default=False,
        ),
    ] = None,
    force: ForceOption = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Convert the solution and other mixes of the size, compare them by llama.cpp on"
            " --text, and keep the recipe that loses least. Needs the extra `eval`.",
        ),
    ] = False,
    text: TextOption = None,
    tokens: TokensOption = 65_536,
    reference: ReferenceOption = None,
    json: JsonOption = False,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    threads: ThreadsOption = None,
    pre: PreOption = None,
    mla: PlanMlaOption = None,
    split_max_size: SplitSizeOption = None,
    split_max_tensors: SplitTensorsOption = None,
    leave_out: LeaveOutOption = None,
    merge_adapter: MergeAdapterOption = None,
    quiet: QuietOption = False,
) -> None:
    """Find the recipe that is expected to lose least for a size.

    Rows of each tensor are encoded with every type that it may have. What their errors cost the
    model is estimated from trained models.
    """
    asked = Asked(target_size, target_bpw, fit, context, sensitivity)
    asked.check()
    check_texts(text, verify, "--verify")
    from dynquant.budget.solve import solve_for
    from dynquant.cli.text_files import check_text, write_text
    from dynquant.inputs import read_inputs
    from dynquant.report.solved import solved_json, solved_line, solved_tables

    if out:
        check_text(out, force=force)
    inputs = read_inputs(
        model,
        recipe,
        imatrix,
        moments=moments,
        pre=pre,
        mla=mla,
        leave_out=leave_out or (),
        merge_adapter=merge_adapter or (),
    )
    problem, target = posed(
        inputs,
        asked,
        threads=threads,
        quiet=quiet,
        effort=effort,
        allow_requantize=allow_requantize,
        split=split_of(split_max_size, split_max_tensors),
    )
    found = solve_for(problem, target)
    for warning in found.plan.warnings:
        console.warn(warning, quiet=quiet)
    recipe_text = found.recipe.text
    if verify:
        settings = settings_of(text, tokens, threads)
        recipe_text = _verified(
            problem, target, found, reference or model, settings, out, json=json, quiet=quiet
        )
    if out:
        write_text(recipe_text, out, force=force, reads=inputs.recipe.files)
    if json:
        console.write_json(solved_json(found))
    elif out is None:
        console.write(recipe_text)
        console.talk(solved_line(found), quiet=quiet)
    else:
        console.show(solved_tables(found))
        console.talk(f"{out}: written", quiet=quiet)


def _verified(
    problem: Problem,
    target: Target,
    solved: Solved,
    reference: str,
    settings: Settings,
    out: Path | None,
    *,
    json: bool,
    quiet: bool,
) -> str:
    """Compare candidates, print the table, and return the text of the recipe that loses least."""
    from tempfile import TemporaryDirectory

    from dynquant.budget.candidates import candidates, compare
    from dynquant.cli.steps import counting, successive
    from dynquant.report.evaluation import evaluation_tables

    found = candidates(problem, target, solved)
    with (
        TemporaryDirectory(prefix="solve.", dir=out.parent if out else None) as folder,
        successive(partial(counting, quiet=quiet)) as progress,
    ):
        best, evaluation = compare(
            found,
            Path(folder),
            reference,
            settings,
            progress=progress,
            say=lambda line: console.talk(line, quiet=quiet),
        )
    for warning in evaluation.warnings:
        console.warn(warning, quiet=quiet)
    if not json and out:
        console.show(*evaluation_tables(evaluation))
    console.talk(f"{best.name} loses least of {len(found)} candidates", quiet=quiet)
    losses = "; ".join(
        f"{file.name.removesuffix('.gguf')} {file.figures.mean_kld.value:.4g}"
        for file in evaluation.files
    )
    texts = ", ".join(text.name for text in evaluation.reference.texts)
    return f"# Measured on {texts}: KL divergence {losses}.\n{best.recipe.text}"
