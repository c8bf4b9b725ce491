"""Progress for notebooks and scripts: a tqdm bar as a progress callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynquant.conversion.engine import Progress


def tqdm_progress(**options: Any) -> Callable[[Progress], None]:
    """Return a progress callback that draws a tqdm bar of output bytes; `options` are tqdm's."""
    from tqdm.auto import tqdm  # pyright: ignore[reportMissingModuleSource]

    bar: Any = None

    def report(progress: Progress) -> None:
        nonlocal bar
        if bar is None:
            given: dict[str, Any] = {"unit": "B", "unit_scale": True, "desc": "dynquant"}
            given |= options
            bar = tqdm(total=progress.bytes_total, **given)
        bar.update(progress.bytes_done - bar.n)
        if progress.bytes_done == progress.bytes_total:
            bar.close()

    return report
