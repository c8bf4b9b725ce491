"""The table of a ladder: its files, with sizes, bits per weight and expected damage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from dynquant.budget.ladder import Rung
from dynquant.conversion.layout import lay_out
from dynquant.figures import figure, size_text
from dynquant.report.tables import plain_table

_SHOWN_TYPES = 4


def ladder_table(rungs: Sequence[tuple[Rung, Path]]) -> Table:
    """Return a line for each file; damage: expected KL divergence of those made for a size."""
    table = plain_table("file", "recipe", "size>", "bpw>", "expected damage>", "types")
    for rung, out in rungs:
        plan = rung.plan
        counts = list(plan.type_counts.items())
        more = ", …" if len(counts) > _SHOWN_TYPES else ""
        table.add_row(
            Text(str(out)),
            Text(plan.recipe.name),
            size_text(lay_out(plan).n_bytes),
            f"{plan.bits_per_weight:.3f}",
            figure(rung.solved.solution.damage) if rung.solved else "-",
            ", ".join(f"{name} {n}" for name, n in counts[:_SHOWN_TYPES]) + more,
        )
    return table
