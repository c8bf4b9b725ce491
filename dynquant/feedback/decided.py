"""Where error feedback is used: each matrix that may have it, decided once."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import fsum
from statistics import geometric_mean

import numpy as np

from dynquant.feedback.crew import Crew
from dynquant.feedback.factors import Factors
from dynquant.feedback.guard import Gain, gain_of
from dynquant.importance.audit import Importance
from dynquant.importance.moments import Moments
from dynquant.quants.encoder import Batch
from dynquant.quants.feedback import Feedback
from dynquant.quants.search import Search
from dynquant.quants.table import QuantType
from dynquant.recipe.feedback import FeedbackSetting
from dynquant.tensors import TensorSource


@dataclass(frozen=True, eq=False)
class Fed:
    """A tensor that may have error feedback: its rows, and how they are encoded.

    rows_of_matrix: rows that share one importance
    """

    name: str
    source: TensorSource = field(repr=False)
    type: QuantType
    importance: Importance = field(repr=False)
    search: Search
    setting: FeedbackSetting
    rows_of_matrix: int


@dataclass(frozen=True)
class TensorGain:
    """What error feedback did for a tensor.

    n_matrices, n_taken: all matrices, and those that are encoded with it
    plain, feedback:     error of the outputs on held-out text without and with it, of the rows that
                         were encoded both ways, those of refused matrices included
    """

    n_matrices: int
    n_taken: int
    plain: float
    feedback: float


def gained_text(gains: Iterable[TensorGain]) -> str:
    """Return how many matrices have feedback, and how much less their outputs are off."""
    found = list(gains)
    ratios = [min(g.feedback, g.plain) / g.plain for g in found if g.plain > 0 and g.n_taken]
    text = f"{sum(g.n_taken for g in found)} of {sum(g.n_matrices for g in found)} matrices"
    if not any(ratios):
        return text
    less = 1 - geometric_mean(r for r in ratios if r > 0)
    return f"{text}; on held-out text the error of their outputs falls by {less:.0%}"


class Decisions:
    """Decides for each matrix, when its first rows are encoded; callable from several threads."""

    def __init__(self, moments: Moments, factors: Factors | None = None) -> None:
        """Begin; factors: of the moments, shared with other outputs; None makes them."""
        self._factors = factors or Factors(moments)
        self._lock = threading.Lock()
        self._gains: dict[tuple[str, int], Crew[Gain]] = {}

    def of(self, fed: Fed, matrix: int) -> Feedback | None:
        """Return the feedback of a matrix; None if its outputs on held-out text do not gain.

        Raises what `gain` raises.
        """
        feedback = self._feedback(fed, matrix)
        if feedback is None or not self._gain(fed, matrix, feedback).is_taken:
            return None
        return feedback

    def gain(self, fed: Fed, matrix: int) -> Gain | None:
        """Return what held-out text says of a matrix; None for one without importance.

        Raises ImportanceError if a file changed, and what reading and encoding raise.
        """
        with self._lock:
            known = self._gains.get((fed.name, matrix))
        if known is not None:
            return known.result()
        feedback = self._feedback(fed, matrix)
        return feedback and self._gain(fed, matrix, feedback)

    def of_tensor(self, fed: Fed) -> TensorGain:
        """Return what held-out text says of all matrices of a tensor.

        Raises what `gain` raises.
        """
        found = [self.gain(fed, m) for m in range(fed.importance.n_matrices)]
        known = [gain for gain in found if gain is not None]
        return TensorGain(
            len(found),
            sum(gain.is_taken for gain in known),
            fsum(gain.plain for gain in known),
            fsum(gain.feedback for gain in known),
        )

    def _feedback(self, fed: Fed, matrix: int) -> Feedback | None:
        importance = fed.importance.of(matrix)
        if importance is None:
            return None
        factor = self._factors.of(fed.name, matrix, fed.setting.damping)
        return Feedback(factor, importance, fed.setting.sweeps)

    def _gain(self, fed: Fed, matrix: int, feedback: Feedback) -> Gain:
        with self._lock:
            crew = self._gains.get((fed.name, matrix))
            if crew is None:
                crew = Crew(lambda _: self._measured(fed, matrix, feedback))
                self._gains[fed.name, matrix] = crew
        return crew.result()

    def _measured(self, fed: Fed, matrix: int, feedback: Feedback) -> Gain:
        batch = Batch(
            np.empty(0, np.uint8),
            fed.source.stored,
            feedback.factor.n,
            fed.type,
            feedback.importance,
            fed.search,
            fed.importance.mean(matrix),
        )
        panels = self._factors.held_out(fed.name, matrix, feedback.importance)
        first = matrix * fed.rows_of_matrix
        return gain_of(fed.source, first, fed.rows_of_matrix, batch, feedback, panels)
