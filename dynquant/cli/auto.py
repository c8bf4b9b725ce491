"""`dynquant auto`: from a model and a size to a measured file, by the other commands."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynquant.cli import console
from dynquant.cli.mmproj import MmprojOption, Projecting
from dynquant.cli.options import (
    EffortOption,
    ImatrixOption,
    LeaveOutOption,
    ModelArgument,
    MomentsOption,
    OutOption,
    PlanMlaOption,
    PreOption,
    QuietOption,
    RequantizeOption,
    ThreadsOption,
    recipe_names,
    size_of,
)
from dynquant.cli.targets import (
    DEFAULT_RECIPE,
    Asked,
    ContextOption,
    FitOption,
    TargetBpwOption,
    TargetSizeOption,
)

if TYPE_CHECKING:
    from dynquant.auto.prepare import Ready
    from dynquant.auto.stages import Asked as Wanted
    from dynquant.auto.stages import Projector
    from dynquant.quants.search import Effort


def auto(
    model: ModelArgument,
    out: OutOption,
    target_size: TargetSizeOption = None,
    target_bpw: TargetBpwOption = None,
    fit: FitOption = None,
    context: ContextOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="R",
            help="A recipe with `choose`: its other rules hold. Default: all types are open.",
            show_default=False,
            autocompletion=recipe_names,
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Evaluate the output on this text, which no other stage reads. Repeat it for"
            " several. Needs the extra `eval`.",
            show_default=False,
        ),
    ] = None,
    tune: Annotated[
        list[Path] | None,
        typer.Option(
            "--tune",
            metavar="FILE",
            help="Measure on this text what errors cost, and compare the solution with other"
            " mixes. Repeat it for several. Needs the extra `eval`.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens", metavar="N", min=1024, help="Tokens of --text, and of --tune, at most."
        ),
    ] = 32_768,
    n_prompts: Annotated[
        int,
        typer.Option(
            "--n-prompts",
            min=0,
            metavar="N",
            help="Prompts that the output continues, as in `dynquant eval`; 0 for none.",
        ),
    ] = 64,
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text that the model reads for its importance; repeat it for several. Default:"
            " the texts that are part of dynquant.",
            show_default=False,
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            min=1,
            metavar="N",
            help="Windows of 512 tokens that it reads; default: all.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Where it runs for this, as in `dynquant imatrix`; default: cpu.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory that it may use for this; default: what is available.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="The folder for the files of the model: importance, moments, sensitivity; default:"
            " that of OUT.gguf.",
            show_default=False,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="STAGE",
            help="Leave a stage out: importance, sensitivity, solve, evaluate, report; or a part of"
            " one: feedback, measure, verify. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    mmproj: MmprojOption = None,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    threads: ThreadsOption = None,
    pre: PreOption = None,
    mla: PlanMlaOption = None,
    leave_out: LeaveOutOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the stages, and stop.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace files in the place of outputs that this command did not write, wrote with"
            " other options, or that were changed since.",
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Make the best file of a size: importance, sensitivity, recipe, GGUF, evaluation, report.

    Each stage is a dynquant command, which is printed. Its files are kept; the same command resumes
    after an interruption, and for another size it takes the files of the model as they are.
    """
    size = Asked(target_size, target_bpw, fit, context)
    size.check()
    size_of(memory, "--memory")
    if moments and not imatrix:
        raise typer.BadParameter("--moments needs --imatrix: both are of one run")
    from dynquant.auto.prepare import prepare
    from dynquant.auto.stages import SKIPPABLE
    from dynquant.auto.stages import Asked as Wanted
    from dynquant.report.stages import stages_table

    if unknown := [name for name in skip or () if name not in SKIPPABLE]:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: is not one of {', '.join(SKIPPABLE)}", param_hint="--skip"
        )
    if tune and "sensitivity" in (skip or ()) and "measure" not in (skip or ()):
        raise typer.BadParameter(
            "--tune measures in the stage sensitivity; skip measure, too", param_hint="--skip"
        )
    if not size.is_given and recipe is None:
        raise typer.BadParameter("missing option: --target-size SIZE, --target-bpw, or --fit")
    wanted = Wanted(
        model,
        out,
        size.target(),
        size.words,
        folder or out.parent,
        recipe,
        pre=pre,
        mla=mla,
        leave_out=tuple(leave_out or ()),
        effort=effort,
        allow_requantize=allow_requantize,
        imatrix=imatrix,
        moments=moments,
        calibration=tuple(calibration or ()),
        chunks=chunks,
        device=device,
        memory=memory,
        tuning=tuple(tune or ()),
        texts=tuple(text or ()),
        tokens=tokens,
        n_prompts=n_prompts,
        threads=threads,
        skip=frozenset(skip or ()),
        projector=None if mmproj is None else _projector(model, mmproj, effort, out),
    )
    with console.each_warning_once():
        ready = prepare(wanted, recipe=recipe or DEFAULT_RECIPE, force=force)
        for warning in ready.warnings:
            console.warn(warning, quiet=quiet)
        console.show(stages_table(ready))
        if dry_run:
            console.talk(f"{out}: not made, this is a dry run", quiet=quiet)
            return
        _carry_out(ready, force=force, quiet=quiet)
    _show(wanted, ready, quiet=quiet)


def _projector(model: str, recipe: str, effort: Effort | None, out: Path) -> Projector:
    """Plan the projector beside an output; raise DynquantError if there is none to write."""
    from dynquant.auto.stages import Projector
    from dynquant.conversion.work import work_of
    from dynquant.recipe.loader import load_recipe

    asked = Projecting(model, recipe, effort)
    plan = asked.make()
    work = work_of(plan)
    return Projector(
        recipe,
        asked.path(out, plan),
        tuple(map(Path, load_recipe(recipe).files)),
        tuple(file.path for file in work.source_files),
        work.layout.n_bytes,
    )


def _carry_out(ready: Ready, *, force: bool, quiet: bool) -> None:
    """Run the commands of the stages that are not done."""
    from dynquant.report.stages import rough_time

    for number, stage in enumerate(ready.stages, 1):
        state = ready.journal.state(stage)
        if state.is_done:
            continue
        console.talk(f"{number} of {len(ready.stages)}: {stage.text}", quiet=quiet)
        ready.journal.begin(stage)
        is_there = any(path.exists() for path in stage.writes)
        # A file that is completed is begun again where it is of other inputs.
        is_other = state.is_stale or (force and not state.resumes)
        replaces = is_there and (is_other if stage.completes else True)
        writes_gguf = stage.arguments[0] == "convert"
        restarts = writes_gguf and not state.resumes and (force or is_there)
        more = [
            *(["--force"] if replaces else []),
            *(["--restart"] if restarts else []),
            *(["--quiet"] if quiet and stage.name != "report" else []),
        ]
        started = time.monotonic()
        try:
            _run([*stage.arguments, *stage.others, *more], stage.stdout)
        except (KeyboardInterrupt, SystemExit):
            console.talk(f"the same command resumes with stage {number}, {stage.name}")
            raise
        ready.journal.finish(stage)
        took = console.duration(time.monotonic() - started)
        console.talk(
            f"{stage.name}: done in {took}, expected"
            f" {rough_time(ready.expected[stage.name].seconds)}",
            quiet=quiet,
        )


def _run(arguments: list[str], stdout: Path | None) -> None:
    """Run a command in this process; what it prints goes into a file, if one is given."""
    from dynquant.cli import app
    from dynquant.cli.text_files import write_text

    command = typer.main.get_command(app)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed) if stdout else contextlib.nullcontext():
        context = command.make_context("dynquant", arguments)
        with context:
            command.invoke(context)
    if stdout:
        write_text(printed.getvalue(), stdout, force=True)


def _show(wanted: Wanted, ready: Ready, *, quiet: bool) -> None:
    """Print what the output lost, and which files there are."""
    if any(stage.name == "evaluate" for stage in ready.stages):
        from dynquant.release.evaluated import read_evaluated
        from dynquant.report.evaluation import evaluation_tables

        console.show(*evaluation_tables(read_evaluated(wanted.files.evaluation).evaluation))
    for stage in ready.stages:
        console.talk(f"{stage.name}: {', '.join(map(str, stage.writes))}", quiet=quiet)
