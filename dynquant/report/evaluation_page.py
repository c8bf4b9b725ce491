"""An evaluation as a self-contained HTML page: `dynquant eval --html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from dynquant.evaluate.results import Evaluation, Example
from dynquant.figures import size_column, three_digits
from dynquant.report.charts import by_size, pareto_front, percentile_chart, size_chart, text_chart
from dynquant.report.command import command_text
from dynquant.report.error_map import error_maps, scale_of
from dynquant.report.evaluation import (
    FIGURES,
    chosen_pairs,
    nats,
    percent,
    perplexity,
    sampler_text,
    verdict,
)
from dynquant.report.html import page_environment

_TEMPLATE = "evaluation.html.jinja"


@dataclass(frozen=True)
class Beside:
    """An answer of a file beside that of the reference; `same` is their common beginning."""

    prompt: str
    same: str
    reference: str
    answer: str
    loops: bool


def evaluation_html(evaluation: Evaluation, paths: Sequence[Path] = ()) -> str:
    """Return an evaluation as an HTML page; the same input gives the same text.

    The page loads nothing.

    paths: of the evaluated files; the manifests beside them have the errors of the tensors

    Raises ReportError if matplotlib is not installed.
    """
    files = by_size(evaluation.files)
    maps = error_maps(files, paths)
    front = {f.name for f, best in zip(files, pareto_front(files), strict=True) if best}
    environment = page_environment(1e6)
    environment.filters["three_digits"] = three_digits
    return environment.get_template(_TEMPLATE).render(
        e=evaluation,
        reference=evaluation.reference,
        files=files,
        front=front,
        sizes=dict(
            zip((f.name for f in files), size_column([f.bytes for f in files]), strict=True)
        ),
        figures=FIGURES,
        nats=nats,
        percent=percent,
        perplexity=perplexity,
        signed_nats="{:+.6f}".format,
        signed_percent=_signed_percent,
        pairs=chosen_pairs(evaluation),
        verdict=verdict,
        sampler=sampler_text,
        beside=_beside,
        command=command_text(evaluation.command),
        maps=[m for m in maps if m.grid],
        without_map=[m for m in maps if not m.grid],
        scale=scale_of(maps),
        size_chart=Markup(size_chart(files)),
        percentile_chart=Markup(percentile_chart(files)),
        text_chart=Markup(text_chart(files)) if any(f.domains for f in files) else "",
    )


def _beside(example: Example) -> Beside:
    same = 0
    for ours, theirs in zip(example.answer, example.reference, strict=False):
        if ours != theirs:
            break
        same += 1
    return Beside(
        example.prompt,
        example.reference[:same],
        example.reference[same:],
        example.answer[same:],
        example.loops,
    )


def _signed_percent(share: float) -> str:
    return f"{100 * share:+.2f} %"
