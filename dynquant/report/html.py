"""A plan as a self-contained HTML page: `dynquant plan --html`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dynquant.errors import ReportError
from dynquant.figures import size_text
from dynquant.name_lists import grouped
from dynquant.plan.plan import Plan
from dynquant.quants.readers import readers_text
from dynquant.quants.table import QuantType
from dynquant.report.colours import THEMES, css, ink, shade
from dynquant.report.grid import make_grid
from dynquant.report.picture import Picture, picture_of
from dynquant.report.solved import BudgetPicture
from dynquant.report.tables import ranges
from dynquant.report.totals import Share, by_reason, by_role, by_rule, by_type, fallbacks

_TEMPLATE = "plan.html.jinja"

_FILTERS: dict[str, Callable[[Any], object]] = {
    "bits": lambda bits: f"{bits:.3f}",
    "nats": lambda nats: f"{nats:.3g}",
    "exact": lambda bits: f"{bits:g}",
    "size_text": size_text,
    "grouped": grouped,
    "ranges": ranges,
    "shape": lambda shape: " × ".join(map(str, shape)),
    "thousands": lambda number: f"{number:,}",
}


def plan_html(plan: Plan, file_bytes: int | None, budget: BudgetPicture | None = None) -> str:
    """Return a plan as an HTML page; the same plan gives the same text. The page loads nothing.

    file_bytes: size of the file; None if it is not known
    budget:     of a plan that was solved for a size
    """
    return page_of(picture_of(plan, file_bytes), budget)


def page_of(picture: Picture, budget: BudgetPicture | None = None) -> str:
    """Return an HTML page of a plan or of a finished file; the same input gives the same text."""
    scale, unit = (1e9, "GB") if picture.tensor_bytes >= 1e9 else (1e6, "MB")
    types = by_type(picture.tensors)
    grid = make_grid(picture.tensors)
    return (
        page_environment(scale)
        .get_template(_TEMPLATE)
        .render(
            plan=picture,
            budget=budget,
            grid=grid,
            sums=[Share(role, grid.column(i)) for i, role in enumerate(grid.columns)],
            unit=unit,
            types=types,
            styles=_styles([share.tensors[0].type for share in types]),
            kinds={share.name: f"k{i}" for i, share in enumerate(types)},
            roles=by_role(picture.tensors),
            rules=by_rule(picture.tensors),
            fallbacks=fallbacks(picture.tensors),
            ignored=by_reason(picture.ignored),
            readers=readers_text([share.name for share in types], picture.architecture),
        )
    )


def check_page(out: Path, *, force: bool) -> None:
    """Raise ReportError if a page cannot be written to `out`."""
    problems: list[str] = []
    if out.suffix.lower() not in (".html", ".htm"):
        problems.append(f"{out}: the name of a page ends in .html; name another file")
    if not out.parent.is_dir():
        problems.append(f"{out.parent}: is not a folder; create it first, or name another file")
    elif os.path.lexists(out):
        if not out.is_file():
            problems.append(f"{out}: is not a regular file; name another one")
        elif not force:
            problems.append(f"{out}: exists; replace it with --force, or name another file")
    ReportError.raise_any(problems)


def write_page(page: str, out: Path, *, force: bool) -> None:
    """Write a page; it gets its name only when it is complete.

    Raises ReportError if the file exists and `force` is False, or if it cannot be written.
    """
    check_page(out, force=force)
    part = out.with_name(out.name + ".part")
    try:
        part.write_text(page, encoding="utf-8", newline="\n")
        part.replace(out)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ReportError(f"{out}: cannot be written: {e.strerror}; name another file") from e


def page_environment(scale: float) -> Environment:
    """Return the environment of templates; scale: bytes of the unit of the filter `scaled`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def scaled(n_bytes: int) -> str:
        return f"{n_bytes / scale:.2f}"

    environment.filters.update(_FILTERS, scaled=scaled)
    return environment


def _styles(types: list[QuantType]) -> dict[str, list[tuple[str, str]]]:
    """Return the background and text colour of each type, for each theme."""
    return {
        theme: [(css(ground), css(ink(ground))) for t in types for ground in [shade(t, theme)]]
        for theme in THEMES
    }
