"""`dynquant types`: the quant types that recipes can name."""

from __future__ import annotations

from dynquant.cli import console
from dynquant.cli.options import JsonOption


def types(json: JsonOption = False) -> None:
    """List the quant types that recipes can name."""
    from dynquant.quants.table import ALL

    if json:
        from dynquant.report.documents import types_json

        console.write_json(types_json(ALL.values()))
    else:
        from dynquant.report.tables import type_table

        console.show(type_table(ALL.values()))
