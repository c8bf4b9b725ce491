"""`dynquant imatrix audit`: what an imatrix has of a model, and what a conversion does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    JsonOption,
    LeaveOutOption,
    PlanMlaOption,
    RemoteModelArgument,
    recipe_names,
)


def audit(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An imatrix file, in either of its formats.")
    ],
    model: RemoteModelArgument,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="R",
            help="Report what this recipe does about experts with few tokens; default: as a recipe"
            " that does not set it.",
            show_default=False,
            autocompletion=recipe_names,
        ),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Print a line for each tensor.")
    ] = False,
    json: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="OUT.html", help="Write a page for a browser, too."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.html if it exists.")] = False,
    mla: PlanMlaOption = None,
    leave_out: LeaveOutOption = None,
) -> None:
    """Print what an imatrix has of each tensor of a model, the problems first."""
    from dynquant.inputs import read_audit
    from dynquant.report.html import check_page, write_page
    from dynquant.report.imatrix import audit_html, audit_json, audit_tables

    if html:
        check_page(html, force=force)
    found = read_audit(file, model, recipe, mla=mla, leave_out=leave_out or ())
    if html:
        write_page(audit_html(found, Path(model).name), html, force=force)
        console.talk(f"{html}: written")
    if json:
        console.write_json(audit_json(found))
    else:
        console.show(audit_tables(found, each=tensors))
