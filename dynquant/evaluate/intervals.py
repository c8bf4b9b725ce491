"""Intervals of figures, by resampling: which values would other texts of this kind have given?

Windows are resampled, not tokens: neighbouring tokens share their context and their difficulty, so
that intervals that treat them as independent are too narrow. Intervals are the central 95 % of the
resampled values (the percentile bootstrap; Efron and Tibshirani 1993, chapter 13), with the same
resamples for all figures and files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from dynquant.arrays import I64
from dynquant.evaluate.distributions import F64

_stats: Any = stats
LEVEL = 0.95
RESAMPLES = 1000
SEED = 20261130
_BATCH = 25

Statistic = Callable[[I64], F64]
"""Returns float64 [n_figures, n_resamples] of windows' numbers, int64 [n_resamples, n_windows]."""


def intervals(statistic: Statistic, n: int) -> tuple[F64, F64, F64]:
    """Return the values of figures, and the lower and upper ends of their intervals.

    n: windows; with a single one, the interval is the value
    """
    values = statistic(np.arange(n)[None])[:, 0]
    if n < 2:
        return values, values, values

    def resampled(numbers: NDArray[Any], axis: int) -> F64:
        assert axis == -1
        return statistic(numbers.reshape(-1, n)).reshape(-1, *numbers.shape[:-1])

    found: Any = _stats.bootstrap(
        (np.arange(n),),
        resampled,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return values, found.confidence_interval.low, found.confidence_interval.high


def share_interval(n: int, total: int) -> tuple[float, float]:
    """Return the interval of a share of independent cases, by Wilson: it is not empty at 0 %."""
    found: Any = _stats.binomtest(n, total).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)
