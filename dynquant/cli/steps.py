"""Progress of a command that does one step after the other."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager

from dynquant.cli import console

Report = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""


@contextlib.contextmanager
def successive(
    shown: Callable[[str], AbstractContextManager[Report | None]],
) -> Generator[Callable[[str, int, int], None]]:
    """Provide a callback for steps: it is called with a step, what is done and what there is.

    shown: starts to show a step, until the next one begins
    """
    with contextlib.ExitStack() as stack:
        current, report = "", None

        def show(step: str, done: int, total: int) -> None:
            nonlocal current, report
            if step != current:
                stack.close()
                current = step
                report = stack.enter_context(shown(step))
            if report is not None:
                report(done, total)

        yield show


@contextlib.contextmanager
def counting(what: str, *, quiet: bool) -> Generator[Callable[[int, int], None] | None]:
    """Provide a callback for what is done and what there is: a bar with the time left, or lines."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TimeRemainingColumn(),
        )
        with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _log_counts(what)


def _log_counts(what: str) -> Callable[[int, int], None]:
    """Return what writes a line from time to time, with the time left."""
    started = last_line = time.monotonic()
    first: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal first, last_line
        first = done if first is None else first
        now = time.monotonic()
        if now - last_line >= console.LOG_SECONDS and done > first:
            last_line = now
            left = (now - started) * (total - done) / (done - first)
            console.talk(f"{what}: {done / total:.0%}, {console.whole_seconds(left)} left")

    return report
