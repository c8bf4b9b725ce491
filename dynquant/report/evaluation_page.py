"""An evaluation as a self-contained HTML page: `dynquant eval --html`."""

from __future__ import annotations

from dynquant.evaluate.results import Evaluation


def evaluation_html(evaluation: Evaluation) -> str:
    """Return an evaluation as an HTML page; the page loads nothing."""
    raise NotImplementedError
