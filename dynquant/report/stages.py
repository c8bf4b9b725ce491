"""The stages of `dynquant auto`, before they start."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from dynquant.auto.prepare import Ready
from dynquant.figures import size_text
from dynquant.report.tables import plain_table


def stages_table(ready: Ready) -> Table:
    """Return a table of stages: what each is expected to take, and its command."""
    table = plain_table("stage", "time, about>", "disk, about>", "command")
    todo = [ready.expected[s.name] for s in ready.stages if not ready.states[s.name].is_done]
    for stage in ready.stages:
        its = ready.expected[stage.name]
        is_done = ready.states[stage.name].is_done
        spent = "done" if is_done else rough_time(its.seconds)
        table.add_row(stage.name, spent, size_text(its.n_bytes), Text(stage.text))
    total = sum(e.seconds for e in todo), sum(e.n_bytes for e in todo)
    table.add_row("to do", rough_time(total[0]), size_text(total[1]), "")
    if cached := sum(e.cached for e in todo):
        table.add_row("", "", size_text(cached), "in the cache folder of `dynquant eval`")
    return table


def rough_time(seconds: float) -> str:
    """Return an estimate as text: 40 s, 7 min, 5 h, 3 days."""
    for limit, unit, n in ((90, "s", 1), (5400, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / n:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
