"""`dynquant recipe diff`: shows the tensors whose types differ, and the difference in bytes."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import ImatrixOption, JsonOption, LeaveOutOption, MlaOption


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A recipe, or a GGUF file.")],
    after: Annotated[str, typer.Argument(metavar="B", help="A recipe, or a GGUF file.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="The model to apply recipes to; not needed for two GGUF files.",
            show_default=False,
        ),
    ] = None,
    imatrix: ImatrixOption = None,
    json: JsonOption = False,
    mla: MlaOption = "split",
    leave_out: LeaveOutOption = None,
) -> None:
    """Show the tensors whose type changes from A to B, and the difference in bytes."""
    from dynquant.plan.apply import typed_sides
    from dynquant.report.changed import changed_json, changed_tables

    a, b = typed_sides((before, after), model, imatrix, mla=mla, leave_out=leave_out or ())
    if json:
        console.write_json(changed_json(a, b))
    else:
        console.show(*changed_tables(before, after, a, b))
