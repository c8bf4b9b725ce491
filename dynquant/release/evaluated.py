"""An evaluation in Markdown, for a model card."""

from __future__ import annotations

from dynquant.evaluate.results import Evaluation


def evaluation_markdown(evaluation: Evaluation) -> str:
    """Return the tables of an evaluation in Markdown."""
    raise NotImplementedError
