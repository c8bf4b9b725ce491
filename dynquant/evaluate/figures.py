"""Figures of a file over windows, and differences between files, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynquant.arrays import I64
from dynquant.evaluate.distributions import F64, Measures
from dynquant.evaluate.intervals import intervals
from dynquant.evaluate.results import Estimate, Figures

_PERCENTILES = {"median_kld": 50, "kld_90": 90, "kld_95": 95, "kld_99": 99, "kld_999": 99.9}
_MEANS = ("mean_kld", "ln_ppl", "ln_ppl_base", "ln_ratio", "same_top", "mean_dp", "square_dp")
_LARGEST = 700.0
"""Logarithm of the largest perplexity that is reported: a double overflows at 709."""


def figures_of(windows: Sequence[Measures]) -> Figures:
    """Return the figures of windows that have the same number of scored tokens each."""
    kl = np.stack([w.kl for w in windows])
    nll, base = np.stack([w.nll for w in windows]), np.stack([w.base_nll for w in windows])
    dp = np.exp(-nll) - np.exp(-base)
    same = np.stack([w.same_top for w in windows]).astype(np.float64)
    means = np.stack(
        [x.mean(axis=1) for x in (kl, nll, base, nll - base, same, dp, dp**2)]
    )  # [figure, window]
    n = len(windows)

    def mean_of(numbers: I64) -> F64:
        found = means[:, numbers].mean(axis=-1)
        return np.concatenate([found, _derived(found)])

    def percentiles_of(numbers: I64) -> F64:
        tokens = kl[numbers].reshape(len(numbers), -1)
        return np.percentile(tokens, list(_PERCENTILES.values()), axis=1)

    found = _estimates((*_MEANS, "ppl", "ppl_base", "ppl_ratio", "rms_dp"), *intervals(mean_of, n))
    found |= _estimates(tuple(_PERCENTILES), *intervals(percentiles_of, n))
    noise = np.stack([w.noise for w in windows])
    return Figures(
        windows=n,
        tokens=kl.size,
        maximum_kld=float(kl.max()),
        sampling_error=float(np.sqrt((noise**2).sum()) / noise.size),
        **{name: value for name, value in found.items() if name in Figures.model_fields},
    )


def _derived(means: F64) -> F64:
    """Return perplexities, their ratio, and the RMS of Δp; each a function of one mean."""
    by_name = dict(zip(_MEANS, means, strict=True))
    logs = np.stack([by_name[name] for name in ("ln_ppl", "ln_ppl_base", "ln_ratio")])
    return np.concatenate([np.exp(np.minimum(logs, _LARGEST)), np.sqrt(by_name["square_dp"])[None]])


def differences(a: Sequence[Measures], b: Sequence[Measures]) -> dict[str, Estimate]:
    """Return the differences a - b of two files on the same windows: mean_kld, ln_ppl, same_top."""
    gaps = np.stack(
        [
            [x.kl.mean() - y.kl.mean() for x, y in zip(a, b, strict=True)],
            [x.nll.mean() - y.nll.mean() for x, y in zip(a, b, strict=True)],
            [x.same_top.mean() - y.same_top.mean() for x, y in zip(a, b, strict=True)],
        ]
    )
    return _estimates(
        ("mean_kld", "ln_ppl", "same_top"),
        *intervals(lambda numbers: gaps[:, numbers].mean(axis=-1), len(a)),
    )


def _estimates(names: Sequence[str], values: F64, low: F64, high: F64) -> dict[str, Estimate]:
    return {
        name: Estimate(value=float(v), low=float(a), high=float(b))
        for name, v, a, b in zip(names, values, low, high, strict=True)
    }
