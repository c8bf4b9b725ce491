"""`dynquant types`: the quant types that recipes can name."""

from __future__ import annotations

from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import JsonOption


def types(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="TYPE...", help="Only these types.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the quant types that recipes can name, and the programs that read them."""
    from dynquant.quants.table import ALL, quant_type

    found = [quant_type(name) for name in names] if names else list(ALL.values())
    if json:
        from dynquant.report.documents import types_json

        console.write_json(types_json(found))
    else:
        from dynquant.report.tables import reading_lines, type_table

        read = [line for t in found for line in reading_lines(t)] if names else []
        console.show(type_table(found), *read)
