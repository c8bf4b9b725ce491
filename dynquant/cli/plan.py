"""`dynquant plan`: what a conversion would write, without writing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.mmproj import MmprojOption, OnlyMmprojOption, uncounted, without_projector
from dynquant.cli.options import (
    BaseOption,
    EffortOption,
    ImatrixOption,
    JsonOption,
    LeaveOutOption,
    LogFormatOption,
    MaxSizeOption,
    MergeAdapterOption,
    MomentsOption,
    PlanMlaOption,
    PreOption,
    RecipeOption,
    RemoteModelArgument,
    RequantizeOption,
    SetOption,
    SplitSizeOption,
    SplitTensorsOption,
    ThreadsOption,
    size_of,
)
from dynquant.cli.planning import Made, Planning
from dynquant.cli.targets import (
    Asked,
    ContextOption,
    FitOption,
    SensitivityOption,
    TargetBpwOption,
    TargetSizeOption,
)


def plan(
    model: RemoteModelArgument,
    recipe: RecipeOption = None,
    saved: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="PLAN.json",
            help="Check that a saved plan still fits the model, and print it.",
            show_default=False,
        ),
    ] = None,
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    target_size: TargetSizeOption = None,
    target_bpw: TargetBpwOption = None,
    fit: FitOption = None,
    context: ContextOption = None,
    sensitivity: SensitivityOption = None,
    mmproj: MmprojOption = None,
    only_mmproj: OnlyMmprojOption = False,
    effort: EffortOption = None,
    allow_requantize: RequantizeOption = False,
    tensors: Annotated[
        bool,
        typer.Option("--tensors", help="Print a line for each tensor, with the rule that decided."),
    ] = False,
    json: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="PLAN.html", help="Draw the plan on a page for a browser, too."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="PLAN.json",
            help="Write the plan to a file that `dynquant convert --plan` carries out.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace PLAN.html and PLAN.json if they exist.")
    ] = False,
    set_keys: SetOption = None,
    pre: PreOption = None,
    mla: PlanMlaOption = None,
    split_max_size: SplitSizeOption = None,
    split_max_tensors: SplitTensorsOption = None,
    leave_out: LeaveOutOption = None,
    merge_adapter: MergeAdapterOption = None,
    base: BaseOption = None,
    max_size: MaxSizeOption = None,
    threads: ThreadsOption = None,
    log_format: LogFormatOption = "text",
) -> None:
    """Print the type, size and place that a recipe gives each tensor."""
    console.log_as(log_format)
    planning = Planning(
        model,
        recipe,
        saved,
        imatrix,
        moments,
        effort,
        allow_requantize,
        set_keys,
        pre,
        mla,
        split_max_size,
        split_max_tensors,
        leave_out,
        Asked(target_size, target_bpw, fit, context, sensitivity),
        threads,
        merge_adapter=merge_adapter,
        base=base,
        fetch="stream",
    )
    projecting = planning.projecting(mmproj, only=only_mmproj)
    if projecting and not only_mmproj and (html or save):
        raise typer.BadParameter(
            "--html and --save are for one file: without --mmproj the language model, with"
            " --only-mmproj the projector"
        )
    limit = size_of(max_size, "--max-size")
    from dynquant.cli.text_files import refuse_read
    from dynquant.conversion.gates import check_gate, size_gate
    from dynquant.conversion.layout import lay_out
    from dynquant.errors import PlanError, Problems
    from dynquant.plan.saved import check_plan_path, write_plan
    from dynquant.report.documents import plan_json
    from dynquant.report.html import check_page, plan_html, write_page
    from dynquant.report.plan_tables import plan_tables
    from dynquant.report.solved import budget_picture

    if html:
        check_page(html, force=force)
    if save:
        check_plan_path(save, force=force)
    console.event("start", command="plan", model=model, **planning.source)
    problems = Problems()
    seeing = problems.attempt(projecting.make) if projecting else None
    if only_mmproj:
        found = Made(seeing) if seeing else None
    else:
        found = problems.attempt(lambda: planning.made(draft=save is None))
    problems.raise_any()
    assert found is not None, "whatever is not read is a fault"
    made, problem, solved = found
    beside = None if only_mmproj else seeing
    for path in (html, save):
        if path:
            refuse_read(path, made.recipe.places)
    for warning in uncounted(fit, beside):
        console.warn(warning)
    for plan_ in (made, beside):
        for warning in without_projector(plan_, seeing) if plan_ else ():
            console.warn(warning)
    for part in made.missing:
        console.warn(f"{part}; until then no file can be written, and its size is not known")
    file_bytes = None if made.missing else lay_out(made).n_bytes
    if html:
        budget = budget_picture(problem, solved) if problem and solved else None
        write_page(plan_html(made, file_bytes, budget), html, force=force)
        console.talk(f"{html}: written")
    if save:
        write_plan(made, save, force=force)
        console.talk(f"{save}: written")
    if json:
        document = plan_json(made) | {"file_bytes": file_bytes}
        document["mmproj"] = (
            plan_json(beside) | {"file_bytes": lay_out(beside).n_bytes} if beside else None
        )
        console.write_json(document)
    else:
        console.show(plan_tables(made, file_bytes, each=tensors))
        if beside:
            console.show(plan_tables(beside, lay_out(beside).n_bytes, each=tensors))
    console.event(
        "done",
        file_bytes=file_bytes,
        tensor_bytes=made.tensor_bytes,
        bits_per_weight=made.bits_per_weight,
        type_counts=made.type_counts,
    )
    PlanError.raise_any(made.refusals)
    if limit is not None:
        # Without a tokenizer the size of the file is not known; the tensors are most of it.
        gate = size_gate(made.data_bytes if file_bytes is None else file_bytes, limit)
        check_gate(gate, model, "use a recipe of fewer bits, or raise the limit")
